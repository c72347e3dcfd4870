"""Named settings of search and variation; a recipe's own keys win over its preset's."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["default", "paper", "released-code"]

PRESETS: dict[str, dict[str, Any]] = {
    # Wider than the paper's near-midpoint crossover, and draws that whole layers share: thousands
    # of independent draws average out to a change of scale (measured in docs/search.md).
    "default": {
        "search": {"archive": {"kind": "grid"}},
        "variation": {
            "crossover": {"per": "model", "mean": 1.0, "deviation": 0.5},
            "mutation": {"kind": "svd", "of": "expert", "w_max": 0.5, "per": "layer"},
        },
    },
    # arXiv 2410.14735 §3 and A.1.3.
    "paper": {
        "search": {
            "children": 1200,
            "children_per_step": 1,
            "archive": {"kind": "grid", "bins": 15, "bounds": "experts", "clip": False},
            "sampling": {"kind": "elite", "low": 0.5, "high": 0.8},
        },
        "variation": {
            "crossover": {"per": "model", "mean": 1.0, "deviation": 0.03},
            "mutation": {"kind": "svd", "of": "child", "w_max": 0.3},
        },
        "aggregation": {"unit": 1, "temperature": 1.0},
    },
    # The constants of the authors' code (commit 3d14971); its SVD mutation uses the active
    # skill's expert. Its own default mutation is Gaussian.
    "released-code": {
        "search": {
            "children": 1200,
            "children_per_step": 1,
            "archive": {"kind": "grid", "bins": 15},
            "sampling": {"kind": "random"},
        },
        "variation": {
            "crossover": {"per": "model", "mean": 1.0, "deviation": 0.01},
            "mutation": {"kind": "svd", "of": "expert", "w_max": 0.1},
        },
    },
}
