"""Exports that are killed, repeated, or run twice at once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from cqd_hub.errors import RunError, UserError
from cqd_hub.genome import Basis, Genome, Materialiser
from cqd_hub.genome.export import export_checkpoint
from cqd_hub.genome.export.checkpoint import ModelFiles
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.stream import tensor_file
from tests.genome.tiny_models import basis_of, load

SHARD = "20KB"
# Exports expert 0 and dies when slot number sys.argv[4] is asked for.
KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from cqd_hub.genome import Genome, Materialiser
    from cqd_hub.genome.export.checkpoint import export_checkpoint
    from tests.genome.tiny_models import basis_of

    base, expert, out, last, cache = sys.argv[1:]
    basis = basis_of(Path(base), [Path(expert)], Path(cache))

    class Mortal(Materialiser):
        def weight(self, genome, slot, **options):
            if slot == int(last):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().weight(genome, slot, **options)

    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    export_checkpoint(genome, Mortal(basis), Path(out), shard_size="20KB")
""")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


class Killed(NamedTuple):
    """A basis, and the folder of an export that was killed half way."""

    basis: Basis
    partial: Path

    def copy(self, room: Path) -> Path:
        """A target in *room* with that folder beside it."""
        shutil.copytree(self.partial, room / ".out.partial")
        return room / "out"


@pytest.fixture(scope="module")
def killed(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    made, place = family(), tmp_path_factory.mktemp("killed")
    out, cache = place / "room" / "out", place / "cache"
    basis = basis_of(made.base, made.full[:1], cache)
    last = str(len(basis.layout.slots) // 2)
    arguments = [str(made.base), str(made.full[0]), str(out), last, str(cache)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    (partial,) = out.parent.iterdir()
    assert partial.name == ".out.partial"
    return Killed(basis, partial)


def test_the_same_export_goes_on(killed: Killed, tmp_path: Path) -> None:
    basis, out = killed.basis, killed.copy(tmp_path)
    before = {file.name: file.stat().st_ino for file in shards(tmp_path / ".out.partial")}
    assert before
    assert list(killed.partial.glob(".*.tmp"))
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    export_checkpoint(genome, Materialiser(basis), out, shard_size=SHARD)
    after = {file.name: file.stat().st_ino for file in shards(out)}
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    expected = Materialiser(basis).state(genome)
    state = load(out).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert not (out / "export.json").exists()


@pytest.mark.parametrize("change", ["genome", "dtype", "shards"])
def test_another_export_begins_anew(killed: Killed, tmp_path: Path, change: str) -> None:
    basis, out = killed.basis, killed.copy(tmp_path)
    genome = Genome.of_expert(basis.hash, basis.layout, 0)
    options: dict[str, Any] = {"shard_size": SHARD}
    if change == "genome":
        genome = Genome.of_base(basis.hash, basis.layout)
    else:
        options |= {"dtype": "bfloat16"} if change == "dtype" else {"shard_size": "30KB"}
    export_checkpoint(genome, Materialiser(basis), out, **options)
    state = {name: tensor for file in shards(out) for name, tensor in load_file(file).items()}
    expected = Materialiser(basis).state(
        genome, dtype=torch.bfloat16 if change == "dtype" else None
    )
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_little_space_keeps_what_is_finished(
    killed: Killed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis, out = killed.basis, killed.copy(tmp_path)
    before = [file.name for file in shards(out.parent / ".out.partial")]
    genome = Genome.of_expert(basis.hash, basis.layout, 0)

    class Usage:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: Usage)
        with pytest.raises(RunError, match=r"0\.00 MB are free"):
            export_checkpoint(genome, Materialiser(basis), out, shard_size=SHARD)
    assert [file.name for file in shards(out.parent / ".out.partial")] == before


def test_two_at_once(tmp_path: Path) -> None:
    key = {"form": "test"}
    with (
        output_folder(tmp_path / "out", needed=0, key=key) as folder,
        pytest.raises(UserError, match=r"another process is exporting there \(wait"),
        output_folder(tmp_path / "out", needed=0, key=key),
    ):
        pass
    assert not folder.exists()
    assert (tmp_path / "out").is_dir()


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    def interrupted() -> None:
        with output_folder(tmp_path / "out", needed=0, key={"form": "test"}) as folder:
            (folder / "shard").write_text("finished")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with output_folder(tmp_path / "out", needed=0, key={"form": "test"}) as folder:
        assert (folder / "shard").read_text() == "finished"


def test_missing_tensors_are_an_error(family: Any, tmp_path: Path) -> None:
    """Whatever the reason: names are compared with the base's when all is written."""
    made = family(tied=False)
    basis = basis_of(made.base, made.full[:1], tmp_path / "cache")
    tensors = load_file(made.base / "model.safetensors")
    tensors.pop("model.norm.weight")
    (tmp_path / "out").mkdir()
    save_file(tensors, tmp_path / "out" / "model.safetensors")
    with pytest.raises(RunError, match=r"model.norm.weight does not come out .* \(1 differ\)"):
        ModelFiles(basis).write(tmp_path / "out", lambda i, dtype: torch.empty(0))


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Every dtype that a base may carry, scalars and empty tensors too."""
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32]
    kinds += [torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn]
    tensors = {
        f"{kind!s} «{shape}»": torch.randint(0, 2, shape).to(kind)
        for kind in kinds
        for shape in [(), (0,), (3, 5), (2, 1, 3, 1)]
    }
    with tensor_file(tmp_path / "x.safetensors", tensors) as add:
        for name, tensor in tensors.items():
            add(name, tensor)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())


def test_a_header_beyond_its_room_is_refused(tmp_path: Path) -> None:
    """It would overwrite the first tensor."""

    def write() -> None:
        with tensor_file(tmp_path / "x.safetensors", ["a"]) as add:
            for number in range(4):
                add(f"{number}" * 60, torch.ones(2))

    with pytest.raises(ValueError, match=r"a header of \d+ bytes in a room of \d+"):
        write()
    assert not (tmp_path / "x.safetensors").exists()
