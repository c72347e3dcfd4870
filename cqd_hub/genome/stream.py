"""Writing a safetensors file one tensor at a time: no more than that tensor is in memory."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

# torch dtype → its name in a safetensors header.
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_ENTRY = 160  # most bytes of a header entry beside its name, for up to four dimensions


class Extent(NamedTuple):
    """A tensor in a safetensors file, to be copied as it lies, whatever its dtype.

    Args:
        file: Where it is.
        dtype: The format's name of it.
        shape: As in the header.
        begin: First byte.
        end: Behind the last byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.end - self.begin


def extents(file: Path) -> dict[str, Extent]:
    """Where the tensors of a safetensors file lie, by name. The file is a valid one."""
    with file.open("rb") as opened:
        start = 8 + (length := int.from_bytes(opened.read(8), "little"))
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: Extent(
            file, entry["dtype"], tuple(entry["shape"]), *(start + o for o in entry["data_offsets"])
        )
        for name, entry in header.items()
    }


Add = Callable[[str, torch.Tensor | Extent], None]


def return_memory() -> None:
    """Give freed memory back to the system.

    The C library keeps freed blocks of some megabytes; over all tensors of a model they add up.
    """
    with suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def tensor_file(
    path: Path, names: Iterable[str], metadata: Mapping[str, str] | None = None
) -> Iterator[Add]:
    """Yield ``add(name, tensor)``; *path* appears, synced, when the block ends without an error.

    The format wants the header first: room for it is kept, and filled with spaces where it is
    shorter. Readers map tensors into memory where they lie, so add wide dtypes before narrow ones.

    Args:
        path: The file; a leftover of an interrupted attempt is overwritten.
        names: All that may be added.
        metadata: More of it than the format; written last, so values may change to others that are
            no longer.

    Raises:
        ValueError: Other or more tensors were added, so that their names do not fit.
    """
    described = {"format": "pt", **(metadata or {})}
    room = 64 + len(json.dumps(described)) + sum(len(json.dumps(n)) + _ENTRY for n in names)
    room += -room % 8
    header: dict[str, Any] = {}
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.seek(8 + room)

        def add(name: str, tensor: torch.Tensor | Extent) -> None:
            begin = file.tell() - 8 - room
            if isinstance(tensor, Extent):
                dtype = tensor.dtype
                for part in _parts(tensor):
                    file.write(part)
            else:
                dtype = CODES[tensor.dtype]
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                file.write(flat.numpy().data)
            end = file.tell() - 8 - room
            header[name] = {
                "dtype": dtype,
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            if end - begin > 1 << 20:
                return_memory()

        yield add
        described = {"format": "pt", **(metadata or {})}
        text = json.dumps({"__metadata__": described, **header}, separators=(",", ":")).encode()
        if len(text) > room:
            raise ValueError(f"{path.name}: a header of {len(text)} bytes in a room of {room}")
        text = text.ljust(room)
        file.seek(0)
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _parts(extent: Extent) -> Iterator[bytes]:
    """Its bytes, a few megabytes at a time."""
    with extent.file.open("rb") as opened:
        opened.seek(extent.begin)
        while missing := extent.end - opened.tell():
            part = opened.read(min(missing, 1 << 22))
            if not part:
                raise OSError(f"{extent.file} is cut short")
            yield part
