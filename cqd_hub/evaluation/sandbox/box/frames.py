"""Frames on standard input and output: four bytes of length, big-endian, then JSON."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any


def read_frame() -> Any:
    """The next request; None at the end of the stream."""
    head = _read_exactly(4)
    return None if head is None else json.loads(_read_exactly(struct.unpack(">I", head)[0]) or b"")


def _read_exactly(length: int) -> bytes | None:
    data = b""
    while len(data) < length:
        piece = os.read(0, length - len(data))
        if not piece:
            return None
        data += piece
    return data


def write_frame(reply: Mapping[str, Any]) -> None:
    data = json.dumps(reply).encode()
    left = memoryview(struct.pack(">I", len(data)) + data)
    while left:
        left = left[os.write(1, left) :]
