from __future__ import annotations

import math

import numpy as np
import pytest

from cqd_hub.search import aggregation_weights

PAPER = np.array([0.764, 0.382, 0.426])  # Table 1, row 11.


def test_on_0_to_1_the_weights_are_nearly_equal() -> None:
    by_hand = [2.14685, 1.46521, 1.53112]  # e^0.764, e^0.382, e^0.426
    assert aggregation_weights(PAPER) == pytest.approx(np.array(by_hand) / 5.14318, abs=1e-5)


def test_on_0_to_100_the_weights_are_nearly_one_hot() -> None:
    weights = aggregation_weights(PAPER, unit=100.0)
    assert weights[0] == pytest.approx(1.0, abs=1e-14)
    assert weights[2] / weights[0] == pytest.approx(math.exp(-33.8))


def test_temperature_divides_the_unit() -> None:
    tempered = aggregation_weights(PAPER, unit=100.0, temperature=100.0)
    assert tempered == pytest.approx(aggregation_weights(PAPER))
    assert aggregation_weights(PAPER, temperature=1e-9).tolist() == [1.0, 0.0, 0.0]
    assert aggregation_weights(np.full(4, 0.3)).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("scores", "options"),
    [
        ([], {}),
        ([[0.1, 0.2]], {}),
        ([0.1, np.nan], {}),
        ([0.1, 0.2], {"unit": 0.0}),
        ([0.1, 0.2], {"temperature": 0.0}),
        ([0.1, 0.2], {"temperature": np.nan}),
    ],
)
def test_refuses(scores: list, options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        aggregation_weights(np.array(scores), **options)
