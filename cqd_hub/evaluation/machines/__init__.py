"""Machines for agents: a root file system of our own making, in bubblewrap or in Docker."""

from __future__ import annotations

from ._build import build_image, to_docker
from ._ids import single_user
from ._image import Image, find_image, images
from ._interface import (
    Language,
    Machine,
    MachineLimits,
    MachineLost,
    Machines,
    Printed,
    Ran,
)
from ._open import Kind, available_machines, open_machines

__all__ = [
    "Image",
    "Kind",
    "Language",
    "Machine",
    "MachineLimits",
    "MachineLost",
    "Machines",
    "Printed",
    "Ran",
    "available_machines",
    "build_image",
    "find_image",
    "images",
    "open_machines",
    "single_user",
    "to_docker",
]
