"""What the tests of the agents' quickstart share: its generator, made once."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from cqd_hub.assets import folder

HOME = folder("evals") / "quickstart-agents"
SKILLS = ("coding", "os", "db")
SPLITS = ("optimisation", "validation", "test")


@functools.cache
def generate() -> ModuleType:
    """The generator, not by its file's name, which is also that of the quickstart's."""
    spec = importlib.util.spec_from_file_location("generate_agents", HOME / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(HOME))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(HOME))
    return module


@functools.cache
def problems(skill: str, split: str) -> list[tuple[int, Any]]:
    """Level and problem of every item of a split, as the generator makes them."""
    return generate().problems(skill, split, seed=0)


def committed(skill: str, name: str) -> list[dict]:
    """The records of a data file."""
    path: Path = HOME / "data" / skill / name
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.splitlines()]
