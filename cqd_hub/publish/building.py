"""An elite's files: weights, tokenizer, genome, mergekit recipe, fingerprint. Needs torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.files import sha256_of, write_atomic
from cqd_hub.publish.choice import Form
from cqd_hub.publish.models import Models
from cqd_hub.publish.view import View

if TYPE_CHECKING:
    from cqd_hub.genome import Basis, Genome, Materialiser

MERGEKIT = "mergekit.yml"
_BESIDE = 100 * 10**6  # bytes that a mergekit recipe may bring along


class Built(NamedTuple):
    """What was made of an individual.

    Args:
        files: Name → file.
        facts: ``files`` (sha256), ``fingerprint``, ``scales`` (by expert), ``mergekit`` (YAML).
    """

    files: dict[str, Path]
    facts: dict[str, Any]


@dataclass
class Workshop:
    """Builds elites of one run; the models are opened for the first.

    Args:
        view: The run.
        models: Base and experts.
        place: A folder where what is built stays until it is published.
        note: Called with a line for what takes time.
    """

    view: View
    models: Models
    place: Path
    note: Callable[[str], None]

    @cached_property
    def basis(self) -> Basis:
        """Base, experts and factors of the run."""
        from cqd_hub.run.lineup import open_basis
        from cqd_hub.run.models import pins_of

        manifest = self.view.manifest
        return open_basis(
            self.view.recipe,
            Path(manifest["folder"]),
            expected=manifest["basis"],
            pins=pins_of(manifest),
            note=self.note,
        )

    def build(self, individual: int, form: Form) -> Built:
        """Make the files, unless an earlier attempt has.

        Raises:
            UserError: The models have changed, or no such form of it.
            RunError: Not enough space.
        """
        known = self.view.individuals[individual]
        folder = self.place / f"{known.genome_hash[:16]}-{form}"
        facts = folder.with_suffix(".json")
        if not (folder.is_dir() and facts.is_file()):
            shutil.rmtree(folder, ignore_errors=True)
            self.note(f"building {known.name} as {form}")
            self._build(individual, form, folder, facts)
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return Built(files, json.loads(facts.read_text(encoding="utf-8")))

    def _build(self, individual: int, form: Form, folder: Path, facts: Path) -> None:
        from cqd_hub.genome import Genome, Materialiser
        from cqd_hub.genome.fingerprint import fingerprint
        from cqd_hub.run.merges import kept_merges

        view, basis = self.view, self.basis
        data = view.genome(individual)
        genome = Genome.from_bytes(data)
        with kept_merges(view.folder, view.manifest, view.recipe, basis, genome) as merges:
            materialiser = Materialiser(basis, merges=merges)
            self._export(genome, materialiser, merges, form, folder)
            (folder / "genome.safetensors").write_bytes(data)
            found = {
                "mergekit": self._mergekit(genome, merges, folder),
                "fingerprint": fingerprint(genome, materialiser),
                "scales": _scales(genome, basis),
            }
        hashes = {
            path.relative_to(folder).as_posix(): sha256_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        write_atomic(facts, json.dumps(found | {"files": hashes}))

    def _export(
        self, genome: Genome, materialiser: Materialiser, merges: Any, form: Form, folder: Path
    ) -> None:
        from cqd_hub.genome.export import export_adapter, export_checkpoint
        from cqd_hub.genome.export.checkpoint import copy_companions

        if form == "checkpoint":
            export_checkpoint(genome, materialiser, folder)
            return
        reference = self.models.base.reference
        assert reference is not None  # checked before the first byte
        repo, _, revision = reference.partition("@")
        made = export_adapter(genome, self.basis, folder, base_name=repo, merges=merges)
        if made.relative_error > 1e-5:
            self.note(f"the adapter has a relative error of {made.relative_error:.2g}")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config["revision"] = revision or None
        text = json.dumps(config, indent=2) + "\n"
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        copy_companions(self.basis.base, folder)

    def _mergekit(self, genome: Genome, merges: Any, folder: Path) -> str | None:
        """The recipe's text, written into *folder* with what it needs, if that is small."""
        from cqd_hub.genome.export import export_mergekit

        references = [model.reference for model in self.models.all]
        if None in references:
            return None  # a stranger has no such folders
        base, *experts = [str(reference) for reference in references]
        work = folder.with_name(f"{folder.name}.mergekit")
        shutil.rmtree(work, ignore_errors=True)
        try:
            recipe = export_mergekit(
                genome, self.basis, work, base=base, experts=experts, merges=merges
            )
        except UserError as error:
            self.note(f"no mergekit recipe: {error.what}")
            return None
        text = recipe.read_text(encoding="utf-8").replace(f"{work.absolute()}/", "./")
        parts = [path for path in work.rglob("*") if path.is_file() and path.parent != work]
        if sum(path.stat().st_size for path in parts) <= _BESIDE:
            (folder / MERGEKIT).write_text(text, encoding="utf-8")
            for path in parts:
                target = folder / path.relative_to(work)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target)
        else:
            text = ""
        shutil.rmtree(work)
        return text or None


def _scales(genome: Genome, basis: Basis) -> list[float]:
    """Per expert, the mean of its coefficients in matrices."""
    layout = basis.layout
    means = []
    for number in range(len(layout.experts)):
        mine = genome.coefficients[(layout.expert_of == number) & layout.in_matrix]
        means.append(float(np.mean(mine, dtype=np.float64)) if mine.size else 0.0)
    return means
