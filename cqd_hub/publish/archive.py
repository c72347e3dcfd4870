"""The archive: a data set repository that holds a run, grown by one commit per push."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cqd_hub import __version__
from cqd_hub.errors import RunError, UserError
from cqd_hub.hub.commit import Change, Content, Head, size_of
from cqd_hub.publish.cards import archive_card
from cqd_hub.publish.models import Models, public_manifest
from cqd_hub.publish.tables import Pushed, write_shards
from cqd_hub.publish.view import View
from cqd_hub.report import build_report, notes, results_table

FORMAT = 1
HEAD = "cqd_hub.json"
_BASIS = 100 * 10**6  # bytes of a basis that is published unasked
_FIGURES = {
    "table": "Average score of each model with its interval",
    "curves": "The archives over the run",
    "lineage": "Lineage of the chosen model",
}


@dataclass(frozen=True)
class Archive:
    """What an archive of a run shall hold.

    Args:
        repo: Where.
        view: The run.
        models: Its base and experts.
        layout: Of its genomes: ``layout.json``.
        basis: Path in the repository → file of the factors, or None.
        merges: The same of the merges that were chosen.
        published: Label → repository of the elites.
        scratch: A folder for shards.
        figures: What each shows → its file.
    """

    repo: str
    view: View
    models: Models
    layout: dict[str, Any]
    basis: Mapping[str, Path] | None
    merges: Mapping[str, Path]
    published: Mapping[str, str]
    scratch: Path
    figures: Mapping[str, Path]
    _written: dict[str, tuple[dict[str, Path], Pushed]] = field(default_factory=dict, repr=False)

    def change(self, head: Head | None) -> Change | None:
        """What a push adds to *head*; None if that is the later one.

        Raises:
            UserError: Another run is published there, or by a newer version.
        """
        old = read_record(head, self.view.run) if head is not None else None
        pushed = Pushed.of(old)
        shards, held = self._shards(pushed)
        # Another process has published more of this run: only what it does not know is added.
        behind = old is not None and (
            held.told > len(self.view.told)
            or any(
                rows.keys() - self.view.groups.get(group, {}).keys()
                for group, rows in held.answers.items()
            )
        )
        record = self._record(held, old or {}, behind=behind)
        files: dict[str, Content | None] = dict(shards)
        files |= dict(self.basis or {}) | dict(self.merges)
        files[HEAD] = _dump(record)
        if behind:
            files = files if shards or self.basis or self.merges else {}
            return Change(self._title(held), files) if files else None
        manifest = public_manifest(self.view.manifest, self.models)
        rows = results_table(self.view.folder)
        files |= {f"figures/{path.name}": path for path in self.figures.values()}
        files |= {
            "layout.json": _dump(self.layout),
            "run/manifest.json": _dump(manifest),
            "run/recipe.json": _dump(manifest["recipe"]),
            "README.md": archive_card(
                repo=self.repo,
                manifest=manifest,
                models=self.models,
                rows=rows,
                notes=notes(rows) if rows else [],
                figures={f"figures/{p.name}": name for name, p in self.figures.items()},
                head=record,
                stopped=len(self.view.stopped),
            ).encode(),
        }
        return Change(self._title(held), files)

    def _shards(self, pushed: Pushed) -> tuple[dict[str, Path], Pushed]:
        """Written once for what the Hub holds: it is looked at before and while committing."""
        key = json.dumps(pushed.record())
        if key not in self._written:
            self._written.clear()
            shutil.rmtree(self.scratch, ignore_errors=True)
            self._written[key] = write_shards(self.view, pushed, self.scratch)
        return self._written[key]

    def _title(self, held: Pushed) -> str:
        return f"Archive after {held.told} individuals"

    def _record(self, held: Pushed, old: Mapping[str, Any], *, behind: bool) -> dict[str, Any]:
        view, before = self.view, old.get("basis", {}).get("files")
        files = sorted({*(before or []), *(self.basis or {})}) or None
        cycle = view.cycle
        assert cycle is not None
        summaries = {
            skill: archive.summary._asdict()
            | {"leader": archive.best.individual if archive.best else None}
            for skill, archive in zip(view.recipe.skills, cycle.archives, strict=True)
        }
        results = view.results
        record = {
            "format": FORMAT,
            "kind": "archive",
            "cqd_hub": __version__,
            "run": view.run,
            "name": view.recipe.name,
            **held.record(),
            "skills": list(view.recipe.skills),
            "elites": {"snapshot": len(view.told), "archives": summaries},
            "chosen": None if results is None else results["chosen"],
            "basis": {"hash": view.manifest["basis"], "files": files},
            "merges": sorted({*old.get("merges", []), *self.merges}),
            "models": self.models.record(),
            "models_published": {**old.get("models_published", {}), **self.published},
        }
        if behind:
            record |= {key: old[key] for key in ("cqd_hub", "elites", "chosen", "models")}
        return record

    def with_published(self, published: Mapping[str, str]) -> Archive:
        """The same with these elites."""
        return replace(self, published=dict(published))


def read_record(head: Head, run: str) -> dict[str, Any] | None:
    """The head file of an archive; None where nothing was published yet.

    Raises:
        UserError: Something else is there.
    """
    data = head.read(HEAD)
    if data is None:
        own = [path for path in head.files if path not in (".gitattributes", "README.md")]
        if own:
            raise UserError(
                f"holds something else ({own[0]})", where=head.repo, remedy="choose another --to"
            )
        return None
    try:
        record = json.loads(data)
        newer = record["format"] != FORMAT
        other = record["run"] != run or record["kind"] != "archive"
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"holds a {HEAD} that cannot be read", where=head.repo, remedy="choose another --to"
        ) from None
    if newer:
        raise UserError(
            f"was published in format {record['format']!r}, this version knows {FORMAT}",
            where=head.repo,
            remedy="update cqd-hub",
        )
    if other:
        raise UserError("holds another run", where=head.repo, remedy="choose another --to")
    return record


def draw(view: View) -> dict[str, Path]:
    """A run's figures, drawn again where the run has gone on; what each shows → its file."""
    figures = view.folder / "figures"
    names = ["table", *(f"archive-{skill}" for skill in view.recipe.skills), "curves", "lineage"]
    if not _drawn(view.folder):
        build_report(view.folder)
    return {
        _FIGURES.get(name)
        or f"Archive of {name.removeprefix('archive-')}: quality over the other skills": path
        for name in names
        if (path := figures / f"{name}.png").is_file()
    }


def _drawn(folder: Path) -> bool:
    """Whether the report is younger than all that it is drawn from."""
    try:
        page = (folder / "report.html").stat().st_mtime_ns
        sources = [folder / "journal.sqlite", folder / "results.json", folder / "manifest.json"]
        sources += (folder / "journal.sqlite-wal",) if _size(folder / "journal.sqlite-wal") else ()
        return all(source.stat().st_mtime_ns < page for source in sources)
    except OSError:
        return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def layout_record_of(folder: Path, opened: Callable[[], Any]) -> dict[str, Any]:
    """A run's ``layout.json``; runs of earlier versions have none, and their models are opened."""
    try:
        return json.loads((folder / "layout.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        from cqd_hub.genome.layout_file import layout_record

        return layout_record(opened())
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read: {error}", where=str(folder / "layout.json")) from None


def factor_files(
    layout: Mapping[str, Any], cache: Path, *, asked: bool, opened: Callable[[], Any]
) -> dict[str, Path] | None:
    """The files of a basis, as an archive names them; None where it is not to be published.

    Args:
        layout: ``layout.json``.
        cache: Where bases are kept.
        asked: Whether it is wanted whatever its size.
        opened: Makes it again where the cache has lost it.
    """
    stores = [cache / entry["folder"] for entry in layout["factors"]]
    if not all((store / "index.json").is_file() for store in stores):
        if not asked:
            return None
        stores = [store.folder for store in opened().factors]
    files = {
        f"basis/{expert}/{path.name}": path
        for expert, store in zip(layout["experts"], stores, strict=True)
        for path in sorted(store.iterdir())
        if path.is_file()
    }
    if not asked and sum(map(size_of, files.values())) > _BASIS:
        return None
    return files


def merge_files(view: View) -> dict[str, Path]:
    """The merges that the run keeps on disk."""
    folder = view.folder / "merges"
    return {f"merges/{path.name}": path for path in sorted(folder.glob("*.safetensors"))}


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
