"""Training of bases and experts: `cqd-hub train`."""

from __future__ import annotations

from cqd_hub.training.recipe import TrainingRecipe
from cqd_hub.training.train import RECORD, train

__all__ = ["RECORD", "TrainingRecipe", "train"]
