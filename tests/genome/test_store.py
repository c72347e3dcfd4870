"""The cache of factors: interrupted, damaged, full, unwritable, keyed by all that decides it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from cqd_hub.errors import RunError, UserError
from cqd_hub.genome import Basis, build_basis, open_models, refuse_twins, store
from cqd_hub.genome import basis as basis_module
from cqd_hub.genome.models.experts import Base, Expert, FullExpert


class Models(NamedTuple):
    base: Base
    experts: list[Expert]

    def build(self, cache: Path, **options: Any) -> Basis:
        return build_basis(self.base, self.experts, cache=cache, **options)


@pytest.fixture
def models(family: Any, monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setattr(store, "_SHARD", 1 << 14)
    made = family()
    return Models(*open_models(made.base, made.full[:1]))


@pytest.fixture
def partial(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a build leaves that is stopped in its twelfth matrix."""
    calls = iter(range(11))
    real = basis_module.factor_by_rows

    def stopped(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(basis_module, "factor_by_rows", stopped)
        with pytest.raises(KeyboardInterrupt):
            models.build(tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "basis").glob("*.partial")
    assert len(list(folder.glob("*.json"))) > 1
    return folder


def readable(basis: Basis) -> bool:
    return all(len(factors.up) for factors in basis.factors[0].values())


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def without_a_tensor(path: Path) -> None:
    """As large as before."""
    size = path.stat().st_size
    tensors = load_file(path)
    tensors["?" + min(tensors)] = tensors.pop(min(tensors))
    save_file(tensors, path)
    with path.open("ab") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("safetensors", zeroed),
        ("safetensors", without_a_tensor),
        ("safetensors", lambda path: path.unlink()),
        ("json", zeroed),
        ("json", lambda path: path.write_text("")),
        ("json", lambda path: path.write_text("[]")),
        ("json", lambda path: path.write_text('{"file": "factors-00001.safetensors"}')),
        ("json", lambda path: path.write_text(path.read_text().replace("00001", "00002"))),
    ],
)
def test_what_a_power_cut_damaged_is_made_again(
    models: Models, partial: Path, tmp_path: Path, kind: str, damage: Callable[[Path], Any]
) -> None:
    whole = models.build(tmp_path / "other")
    damage(partial / ("factors-00001." + kind))
    kept = (partial / "factors-00002.safetensors").read_bytes()
    made = models.build(tmp_path / "cache")
    assert made.hash == whole.hash
    assert readable(made)
    assert (made.factors[0].folder / "factors-00002.safetensors").read_bytes() == kept
    assert not made.factors[0].folder.with_suffix(".partial").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("factors-00002.safetensors", zeroed),
        ("factors-00002.safetensors", without_a_tensor),
        ("index.json", zeroed),
        *(
            ("index.json", lambda path, text=text: path.write_text(text))
            for text in ("", "[]", "null", "{}", '{"hash": 1, "files": [], "slots": {"a": 3}}')
        ),
    ],
)
def test_a_damaged_entry_is_made_again(
    models: Models, tmp_path: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    first = models.build(tmp_path)
    damage(first.factors[0].folder / name)
    again = models.build(tmp_path)
    assert again.hash == first.hash
    assert readable(again)


def test_damage_while_in_use_is_one_line(models: Models, tmp_path: Path) -> None:
    basis = models.build(tmp_path)
    file = basis.factors[0].folder / "factors-00001.safetensors"
    for damage in (zeroed, Path.unlink):
        damage(file)
        with pytest.raises(RunError, match=r"are damaged .delete .*; it will be made") as info:
            readable(basis)
        assert "\n" not in str(info.value)


def test_shards_are_synced_before_their_records(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    files = models.build(tmp_path).factors[0].files
    for name in set(files.values()):
        record = f".{name.removesuffix('.safetensors')}.json."
        first = next(i for i, other in enumerate(synced) if other.startswith(record))
        assert name in synced[:first]


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def leave(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, count))

    return leave


def needed(base: Base, *, without: Collection[str] = ()) -> int:
    return sum(
        4 * min(slot.shape) * sum(slot.shape)
        for slot in base.slots
        if slot.is_matrix and slot.name not in without
    )


def test_what_is_written_need_not_fit_again(
    models: Models, partial: Path, tmp_path: Path, free: Callable[[int], None]
) -> None:
    left = needed(models.base, without=store.written(partial))
    assert 0 < left < needed(models.base)
    free(left - 1)
    sizes = rf"{left / 1e6:.2f} MB more, {(left - 1) / 1e6:.2f} MB are free"
    with pytest.raises(UserError, match=sizes):
        models.build(tmp_path / "cache")
    free(left)
    assert readable(models.build(tmp_path / "cache"))


def test_all_experts_must_fit_before_the_first_is_factored(
    family: Any, tmp_path: Path, free: Callable[[int], None]
) -> None:
    made = family()
    models = Models(*open_models(made.base, made.full[:2]))
    free(2 * needed(models.base) - 1)
    with pytest.raises(UserError, match="the basis needs"):
        models.build(tmp_path)
    assert not list((tmp_path / "basis").rglob("*.safetensors"))
    Models(models.base, models.experts[:1]).build(tmp_path)
    models.build(tmp_path)  # the first is there now
    free(0)
    models.build(tmp_path)


def test_a_cache_that_is_no_folder(models: Models, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*set CQD_HUB_CACHE"):
        models.build(tmp_path / "file")


@pytest.mark.parametrize("method", ["mkdir", "open"])
def test_a_cache_that_cannot_be_written(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real = getattr(Path, method)

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, method, refused)
    with pytest.raises(UserError, match=r"cannot be written: Permission denied .set CQD_HUB_CACHE"):
        models.build(tmp_path)


def test_the_key_has_the_slots(models: Models, tmp_path: Path) -> None:
    """Another version may work on the same files in another shape or order."""
    first = models.build(tmp_path)
    (matrix, *_) = (slot for slot in models.base.slots if slot.is_matrix)
    for changed in (replace(matrix, kind="transposed"), replace(matrix, name="renamed")):
        slots = tuple(changed if slot == matrix else slot for slot in models.base.slots)
        base = replace(models.base)
        base.__dict__["slots"] = slots  # a cached property
        (expert,) = models.experts
        other = build_basis(base, [replace(expert, base=base)], cache=tmp_path)  # type: ignore[type-var]
        assert other.factors[0].folder != first.factors[0].folder


def test_the_key_of_what_peft_merged_has_its_version(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (expert,) = models.experts
    assert isinstance(expert, FullExpert)
    merged = replace(expert, origin=expert.path, origin_hash="0" * 64)
    first = build_basis(models.base, [merged], cache=tmp_path)
    plain = models.build(tmp_path)
    monkeypatch.setattr(basis_module, "version", lambda name: f"another {name}")
    assert build_basis(models.base, [merged], cache=tmp_path).factors != first.factors
    assert models.build(tmp_path).factors == plain.factors


def test_an_expert_listed_twice(family: Any, tmp_path: Path) -> None:
    made = family()
    copied = shutil.copytree(made.full[0], tmp_path / "copy")
    for twin in (made.full[0], copied):
        _, experts = open_models(made.base, [made.full[0], made.full[1], twin])
        with pytest.raises(UserError, match=r"is the same expert as .*full1 \(list it once\)"):
            refuse_twins(experts)
        refuse_twins(experts[:2])
