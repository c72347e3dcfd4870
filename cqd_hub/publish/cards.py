"""The cards: what it is, how it was made, how good it is and how sure, how to use it.

Everything that others wrote is escaped: names, labels, paths. What models wrote is not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from cqd_hub.publish.models import Model, Models
from cqd_hub.report import Row, visible
from cqd_hub.statistics import Interval

TAGS = ["cycleqd", "cqd-hub", "merge"]
_PAPER = "[CycleQD](https://arxiv.org/abs/2410.14735)"
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>~$&:@])")


class Score(NamedTuple):
    """One skill's score of one elite.

    Args:
        skill: Its name.
        split: The samples.
        interval: 95 % confidence.
        path: The engine that answered.
    """

    skill: str
    split: str
    interval: Interval
    path: str


def escaped(text: str, *, length: int = 200) -> str:
    """One line of text in which nothing is markup."""
    line = visible(text, one_line=True)
    line = line if len(line) <= length else line[: length - 1] + "…"
    return _MARKUP.sub(lambda match: f"&#{ord(match[1])};", line)


def fenced(text: str, language: str = "") -> str:
    """Text as a block of code, whatever it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def archive_card(
    *,
    repo: str,
    manifest: Mapping[str, Any],
    models: Models,
    rows: Sequence[Row],
    notes: Sequence[str],
    figures: Mapping[str, str],
    head: Mapping[str, Any],
    stopped: int,
) -> str:
    """The card of an archive.

    Args:
        repo: Where it is published.
        manifest: As it is published.
        models: Base and experts.
        rows: The table; *notes* are its reading aids.
        figures: Path in the repository → what it shows.
        head: As it is published.
        stopped: How many individuals were stopped early.
    """
    recipe = manifest["recipe"]
    skills = list(recipe["skills"])
    configs = [
        {
            "config_name": table,
            **({"default": True} if table == "elites" else {}),
            "data_files": [{"split": "train", "path": f"data/{table}/*.parquet"}],
        }
        for table in ("elites", "individuals", "scores", "lineage")
    ]
    metadata = {
        **models.card,
        "pretty_name": visible(str(recipe["name"]), one_line=True),
        "tags": [*TAGS, "quality-diversity", "evolution"],
        **_parents([model.repo for model in models.all]),
        "configs": configs,
    }
    elites = head["models_published"]
    parts = [
        f"# {escaped(str(recipe['name']))}: an archive of evolved models",
        f"A run of {_PAPER} with cqd-hub: models that hold "
        f"{len(skills)} skills at once ({', '.join(map(escaped, skills))}), merged from "
        f"{len(models.experts)} experts of one base. It holds {head['told']} individuals that were "
        "offered to the archives, their genomes, their lineage and every answer that was scored. "
        "Any of them can be rebuilt from its genome.",
        "## Use",
        fenced(
            f"cqd-hub pull {repo}                       # list the elites\n"
            f"cqd-hub pull {repo} best --to my-model    # rebuild one, checked by its hash",
            "sh",
        ),
        fenced(
            "from datasets import load_dataset\n\n"
            f'load_dataset("{repo}", "elites")        # also: individuals, scores, lineage',
            "python",
        ),
        "## Scores",
        _table(rows),
        " ".join(map(escaped_text, notes)),
        *(f"![{escaped_text(alt)}]({path})" for path, alt in figures.items()),
        "## Made from",
        "\n".join(f"- {escaped(model.name)}: {_described(model)}" for model in models.all),
        *_licence_notes(models),
        *(
            [
                "## Published models",
                "\n".join(
                    f"- {escaped(label)}: [{name}](https://huggingface.co/{name})"
                    for label, name in sorted(elites.items())
                ),
            ]
            if elites
            else []
        ),
        "## What is in it",
        "- `data/elites`: who held each cell of each archive at each push (`snapshot`: so many "
        "had been told)\n"
        "- `data/individuals`, `data/lineage`: everybody, with parents, operators and seeds\n"
        + (
            f"  - {stopped} of them were stopped early, once no archive could keep them: they have "
            "no means in `individuals`; `stopped_early` in `lineage` (column `other`) says how "
            "many samples they answered\n"
            if stopped
            else ""
        )
        + "- `data/scores`: every answer to every sample. `text` was written by models: it is "
        "data, never run or render it\n"
        "- `data/genomes`, `layout.json`: what it takes to rebuild them"
        + (", with the `basis`" if head["basis"]["files"] else "")
        + "\n- `run/`: manifest and recipe; `cqd_hub.json`: what of the run is here",
        "## The recipe",
        fenced(json.dumps(recipe, indent=2, ensure_ascii=False), "json"),
    ]
    return _card(metadata, parts)


def elite_card(
    *,
    repo: str,
    archive: str,
    record: Mapping[str, Any],
    models: Models,
    scores: Sequence[Score],
    lineage: Mapping[str, Any],
    mergekit: str | None,
) -> str:
    """The card of one elite.

    Args:
        repo: Where it is published.
        archive: The archive's repository.
        record: Its ``cqd_hub.json``.
        models: Base and experts.
        scores: What is known of it.
        lineage: Parents, operators, parameters, seed.
        mergekit: The YAML that makes the same weights.
    """
    adapter = record["form"] == "adapter"
    parents = [models.base.repo] if adapter else [model.repo for model in models.experts]
    metadata: dict[str, Any] = {
        **models.card,
        **_parents(parents, "adapter" if adapter else "merge"),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*TAGS, *(["mergekit"] if mergekit else []), *(["lora"] if adapter else [])],
    }
    who, label = record["individual"], str(record["label"])
    load = (
        "from peft import AutoPeftModelForCausalLM\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")'
        if adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{repo}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")'
    )
    parts = [
        f"# {escaped(repo.partition('/')[2])}",
        f"{escaped(label)}: individual {who} of the {_PAPER} run "
        f"[{archive}](https://huggingface.co/datasets/{archive}), a merge of "
        f"{len(models.experts)} experts of one base"
        + (", as a PEFT adapter for that base." if adapter else "."),
        fenced(load, "python"),
        "## Scores",
        _scores(scores, stopped="stopped_early" in lineage),
        "## Made from",
        "\n".join(
            [
                f"- base: {_described(models.base)}",
                *(
                    f"- {escaped(expert.name)}: {_described(expert)}; mean scale "
                    f"{record['experts'][expert.name]['scale']:.3f}"
                    for expert in models.experts
                ),
            ]
        ),
        *_licence_notes(models),
        "## Rebuild it",
        "From its genome (`genome.safetensors`), base and experts, checked against the fingerprint "
        "in `cqd_hub.json`:",
        fenced(f"cqd-hub pull {archive} {who} --to my-model", "sh"),
        *(
            ["With mergekit (`mergekit.yml`):", fenced(mergekit, "yaml")]
            if mergekit
            else [f"With mergekit: `cqd-hub pull {archive} {who} --form mergekit --to recipe`"]
        ),
        "## Lineage",
        fenced(json.dumps(lineage, indent=1, ensure_ascii=False, sort_keys=True), "json"),
    ]
    return _card(metadata, parts)


def escaped_text(text: str) -> str:
    """A sentence of ours that holds names of others: only what could become markup is escaped."""
    return re.sub(r"([\\`*_\[\]<>|&])", lambda match: f"&#{ord(match[1])};", visible(text))


def _card(metadata: Mapping[str, Any], parts: Iterable[str]) -> str:
    front = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _parents(repos: Iterable[str | None], relation: str | None = None) -> dict[str, Any]:
    names = list(dict.fromkeys(repo for repo in repos if repo is not None))
    if not names:
        return {}
    return {"base_model": names} | ({"base_model_relation": relation} if relation else {})


def _described(model: Model) -> str:
    name = (
        "a local folder"
        if model.repo is None
        else f"[{model.repo}](https://huggingface.co/{model.repo})"
    )
    commit = (model.reference or "").partition("@")[2]
    licence = escaped(model.licence.terms) if model.licence.terms else "unknown"
    return name + (f" at `{commit[:12]}`" if commit else "") + f", licence {licence}"


def _licence_notes(models: Models) -> list[str]:
    verdict = models.verdict
    said = [*verdict.conflicts, *verdict.duties]
    if verdict.unknown:
        said.append(f"the licence of {', '.join(verdict.unknown)} is not known")
    return ["Licences: " + "; ".join(map(escaped, said)) + "."] if said else []


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return "Nothing has been measured on all skills yet."
    skills = list(rows[0].skills)
    heads = ["", *map(escaped, skills), "average", "vs best expert"]
    lines = [_line(heads), _line(["---", *(["---:"] * (len(skills) + 2))])]
    for row in rows:
        label = escaped(row.label, length=60)
        lines.append(
            _line(
                [
                    f"**{label}**" if row.chosen else label,
                    *(_interval(row.skills[skill]) for skill in skills),
                    _interval(row.average),
                    "" if row.difference is None else _interval(row.difference, signed=True),
                ]
            )
        )
    return "\n".join(lines)


def _scores(scores: Sequence[Score], *, stopped: bool) -> str:
    if not scores:
        return "It was not measured on all skills."
    lines = [
        _line(["skill", "score in %", "samples", "split"]),
        _line(["---", "---:", "---:", "---"]),
    ]
    lines += [
        _line(
            [
                escaped(one.skill),
                _interval(one.interval),
                f"{one.interval.n:.0f}",
                escaped(one.split),
            ]
        )
        for one in scores
    ]
    said = "Brackets are 95 % confidence intervals over samples."
    if scores[0].split == "optimisation":
        said += " The search selected on these very samples, so the scores flatter it."
        if stopped:
            said += " It was stopped early, once no archive could keep it: some were not asked."
    return "\n".join(lines) + f"\n\n{said}"


def _interval(value: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    mean, low, high = (f"{100 * part:{sign}.1f}" for part in value[:3])
    return f"{mean} [{low}, {high}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
