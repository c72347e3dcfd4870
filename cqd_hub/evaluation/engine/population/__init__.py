"""Individuals of one population side by side in one batch, on one base."""

from cqd_hub.evaluation.engine.population._people import expressible
from cqd_hub.evaluation.engine.population._wrap import unsupported
from cqd_hub.evaluation.engine.population.engine import PopulationEngine

__all__ = ["PopulationEngine", "expressible", "unsupported"]
