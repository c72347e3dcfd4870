"""An individual as one GGUF file, made by llama.cpp's own converter from a checkpoint."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from cqd_hub.errors import RunError, UserError
from cqd_hub.genome.export.checkpoint import Dtype, ModelFiles, individual
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.materialise import Materialiser

Outtype = Literal["auto", "f32", "f16", "bf16", "q8_0"]
SCRIPT = "convert_hf_to_gguf.py"
_WIDTH = {"f32": 4.0, "q8_0": 1.1}  # bytes of a weight, about; 2 otherwise


def find_converter(given: Path | None = None) -> Path | None:
    """The converter: *given* (the script or its folder), else ``$LLAMA_CPP``, else on ``$PATH``.

    Raises:
        UserError: *given* or ``$LLAMA_CPP`` does not lead to one.
    """
    named = str(given) if given is not None else os.environ.get("LLAMA_CPP")
    if named:
        path = Path(named).expanduser()
        path = path / SCRIPT if path.is_dir() else path
        if not path.is_file():
            raise UserError(
                f"no {SCRIPT} there",
                where=named if given is not None else f"LLAMA_CPP={named}",
                remedy="give the folder of a llama.cpp checkout",
            )
        return path.absolute()
    found = shutil.which(SCRIPT)
    return Path(found) if found else None


def gguf_command(checkpoint: Path, *, outtype: Outtype = "auto") -> str:
    """What to run where a converter is, once *checkpoint* is written."""
    place = checkpoint.absolute()
    name = str(place / f"{place.name}-{{ftype}}.gguf")
    return shlex.join(["python", SCRIPT, str(place), "--outfile", name, "--outtype", outtype])


def export_gguf(
    genome: Genome,
    materialiser: Materialiser,
    out: Path,
    *,
    converter: Path,
    outtype: Outtype = "auto",
    dtype: Dtype | None = None,
) -> Path:
    """Write the individual as ``OUT/OUT-<type>.gguf``.

    A checkpoint is written beside *out* first, converted, and deleted. A killed export keeps what
    of the checkpoint it has finished.

    Args:
        out: A folder that does not exist yet.
        converter: See `find_converter`. It runs in this Python, without network.
        outtype: As the converter knows it; ``"auto"`` is the 16-bit type nearest to the weights.
        dtype: Of the checkpoint; the base's unless given.

    Returns:
        The file.

    Raises:
        UserError: *out* exists or is not writable.
        RunError: Not enough space, or the converter fails (its reason is given).
    """
    model = ModelFiles(materialiser.basis, dtype=dtype)
    key = {"form": "gguf", "outtype": outtype, "genome": genome.hash, **model.key}
    weights = sum(math.prod(part.shape) for part in model.parts)
    needed = model.bytes + int(weights * _WIDTH.get(outtype, 2.0))
    with output_folder(out, needed=needed, key=key) as folder:
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir(exist_ok=True)
        model.write(checkpoint, individual(genome, materialiser))
        name = out.absolute().name
        _convert(converter, checkpoint, folder / f"{name}-{{ftype}}.gguf", name, outtype)
        (made,) = folder.glob("*.gguf")
        shutil.rmtree(checkpoint)
    return out / made.name


def _convert(converter: Path, checkpoint: Path, file: Path, name: str, outtype: str) -> None:
    command = [sys.executable] if converter.suffix == ".py" else []
    command += [str(converter), str(checkpoint), "--outfile", str(file)]
    command += ["--outtype", outtype, "--model-name", name]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for stale in file.parent.glob("*.gguf"):
        stale.unlink()
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, errors="replace"
    )
    if done.returncode or not list(file.parent.glob("*.gguf")):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunError(
            f"the converter failed: {lines[-1] if lines else f'exit code {done.returncode}'}",
            where=str(converter),
            remedy="export --form checkpoint and run the converter on it to see more",
        )
