"""Commands for starting out: init, doctor."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cqd_hub.cli.called import command
from cqd_hub.cli.options import JsonOption
from cqd_hub.errors import UserError
from cqd_hub.recipe.schema import RESERVED


def init(
    base: Annotated[str, typer.Argument(help="The base model: a folder, or ns/name on the Hub.")],
    experts: Annotated[
        list[str],
        typer.Argument(metavar="EXPERT...", help="Fine-tunes or adapters: folders, or ns/name."),
    ],
    skills: Annotated[
        list[str] | None,
        typer.Option(
            "--skill", metavar="NAME=TASK,METRIC", help="An lm-eval task and metric; repeatable."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("recipe.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Write a commented recipe for a base and its experts, after checking that they fit.

    Examples:

        cqd-hub init models/base models/math models/code --skill math=gsm8k,exact_match,strict-match

        cqd-hub init ns/base ns/math-expert ns/code-lora@v2
    """
    if out.exists():
        raise UserError("exists", where=str(out), remedy="choose another with --out")
    if len(experts) < 2:
        raise UserError("a search needs at least two experts", remedy="name another one")
    from cqd_hub.run.models import check_places

    adapters = check_places(
        [base, *experts], Path.cwd(), note=lambda line: print(line, file=sys.stderr)
    )
    kinds = ["adapter" if adapter else "full fine-tune" for adapter in adapters[1:]]
    chosen = dict(_skill(text) for text in skills or [])
    out.write_text(_recipe(out, base, experts, kinds, chosen), encoding="utf-8")
    print(json.dumps({"path": str(out)}) if as_json else out)
    todo = "" if chosen else "fill in `skills`, then "
    print(f"{todo}run: {command('evolve', out)}", file=sys.stderr)


def _skill(text: str) -> tuple[str, tuple[str, str]]:
    name, equals, rest = text.partition("=")
    task, comma, metric = rest.partition(",")
    if not (equals and comma and name and task and metric):
        raise UserError(
            f"{text!r} is not NAME=TASK,METRIC",
            where="--skill",
            remedy="write --skill math=gsm8k,exact_match,strict-match",
        )
    return name, (task, metric)


def _recipe(
    out: Path,
    base: str,
    experts: list[str],
    kinds: list[str],
    skills: dict[str, tuple[str, str]],
) -> str:
    from cqd_hub.recipe.template import render

    names = _distinct([Path(expert.partition("@")[0]).name for expert in experts])
    places = [_place(expert) for expert in experts]
    return render(
        name=out.stem,
        base=_place(base),
        experts=list(zip(names, places, kinds, strict=True)),
        skills=skills,
    )


def _place(given: str) -> str:
    """As a recipe in any folder can name it."""
    from cqd_hub.hub.reference import is_reference

    on_hub = is_reference(given, Path.cwd())
    return given if on_hub else str(Path(given).expanduser().resolve())


def _distinct(names: list[str]) -> list[str]:
    """Names that a recipe accepts for experts: plain characters, not reserved, each once."""
    result: list[str] = []
    for name in names:
        clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:48] or "expert"
        if clean.isdigit() or clean in RESERVED:
            clean = f"expert-{clean}"
        result.append(clean if clean not in result else f"{clean}-{len(result)}")
    return result


class Check(NamedTuple):
    """One line of `doctor`."""

    what: str
    state: str  # "ok", "missing" or "optional"
    detail: str
    remedy: str


def doctor(as_json: JsonOption = False) -> None:
    """Show what is missing for what, with the command that installs it.

    Examples:

        cqd-hub doctor
    """
    checks = [*_libraries(), *_sandboxes(), *_machines(), *_machine()]
    if as_json:
        for check in checks:
            print(json.dumps(check._asdict()))
    else:
        width = max(len(check.what) for check in checks)
        for check in checks:
            print(f"{check.state:8} {check.what:<{width}}  {check.detail}".rstrip())
            if check.state != "ok" and check.remedy:
                print(f"{'':8} {'':<{width}}  → {check.remedy}")
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


def _libraries() -> list[Check]:
    needed = {
        "torch": "models",
        "transformers": "models",
        "lm-eval": "tasks",
        "datasets": "tasks",
        "peft": "training and adapters",
        "matplotlib": "figures",
    }
    optional = {"mergekit": "crossover by merge methods, running exported recipes"}
    found = []
    for name, purpose in {**needed, **optional}.items():
        try:
            version = importlib.metadata.version(name)
            found.append(Check(name, "ok", f"{version}, for {purpose}", ""))
        except importlib.metadata.PackageNotFoundError:
            state = "optional" if name in optional else "missing"
            found.append(Check(name, state, f"for {purpose}", f"pip install {name}"))
    return found


def _sandboxes() -> list[Check]:
    from cqd_hub.evaluation.sandbox import available

    kinds = available()
    usable = any(kind.ok for kind in kinds)
    return [
        Check(
            f"sandbox {kind.kind}",
            "ok" if kind.ok else "optional" if usable else "missing",
            "for running model-written code" if kind.ok else kind.why_not,
            kind.remedy,
        )
        for kind in kinds
    ]


def _machines() -> list[Check]:
    from cqd_hub.evaluation.machines import available_machines

    return [
        Check(
            f"machines {kind.kind}",
            "ok" if kind.ok else "optional",
            "for agents that act" if kind.ok else kind.why_not,
            kind.remedy,
        )
        for kind in available_machines()
    ]


def _machine() -> list[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    gpu = shutil.which("nvidia-smi")
    return [
        Check("python", "ok", platform.python_version(), ""),
        Check("disk", "ok", f"{free:.0f} GB free here", ""),
        Check(
            "gpu",
            "ok" if gpu else "optional",
            "NVIDIA driver found" if gpu else "none; models run on the CPU",
            "",
        ),
    ]
