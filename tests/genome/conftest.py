from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.genome.tiny_models import make_base, make_full, make_lora


class Family(NamedTuple):
    base: Path
    full: list[Path]
    lora: list[Path]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    """Make (once) a base with three full fine-tunes and three LoRA adapters."""
    made: dict[tuple[bool, str], Family] = {}

    def make(*, tied: bool = True, dtype: str = "float32") -> Family:
        if (tied, dtype) not in made:
            folder = tmp_path_factory.mktemp("family")
            base = make_base(folder / "base", tied=tied, dtype=dtype)
            full = [make_full(base, folder / f"full{i}", seed=i) for i in (1, 2, 3)]
            attention = ["q_proj", "v_proj"]
            lora = [
                make_lora(base, folder / "lora1", seed=4),
                make_lora(
                    base,
                    folder / "lora2",
                    seed=5,
                    rank_pattern={"q_proj": 3, "layers.1.mlp.up_proj": 7},
                    alpha_pattern={"q_proj": 9, "down_proj": 2},
                ),
                make_lora(
                    base, folder / "lora3", seed=6, target_modules=attention, use_rslora=True
                ),
            ]
            made[tied, dtype] = Family(base, full, lora)
        return made[tied, dtype]

    return make
