"""Every operator against dense float64 arithmetic, along a lineage of ten operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cqd_hub.genome import build_basis, open_models
from tests.genome.dense import check_lineage

CASES = [
    pytest.param(tied, dtype, kinds, options, id=f"{kinds}-{name}-{dtype}-{'tied' * tied}")
    for tied, dtype in ((True, "float32"), (False, "bfloat16"))
    for kinds, name, options in (
        ("full", "full", {}),
        ("full", "tails", {"rank": 6}),
        ("full", "drop", {"rank": 6, "tail": "drop"}),
        ("lora", "exact", {}),
        ("mixed", "full", {}),
        ("mixed", "tails", {"rank": 6}),
    )
]


@pytest.mark.parametrize(("tied", "dtype", "kinds", "options"), CASES)
def test_ten_operations_match_dense_arithmetic(
    family: Callable[..., Any],
    tmp_path: Any,
    tied: bool,
    dtype: str,
    kinds: str,
    options: dict[str, Any],
) -> None:
    made = family(tied=tied, dtype=dtype)
    paths = {"full": made.full, "lora": made.lora, "mixed": [made.full[0], *made.lora[:2]]}[kinds]
    basis = build_basis(*open_models(made.base, paths), cache=tmp_path, **options)
    check_lineage(basis, tail=options.get("tail", "tied"))
