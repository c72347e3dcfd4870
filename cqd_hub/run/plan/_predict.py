"""Memory, disk and time of a run, from sizes, work and measured rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from cqd_hub.evaluation.engine.choose import Choice, overhead
from cqd_hub.evaluation.engine.memory import Load, on_device, on_host
from cqd_hub.genome.held import Weights
from cqd_hub.genome.host import resident
from cqd_hub.recipe import Recipe
from cqd_hub.run.plan._calibrate import Rates
from cqd_hub.run.plan._survey import Survey
from cqd_hub.run.plan._work import AGREE, LEFT, NEW, NEW_EXPERT, NEW_FINAL, Demand, Work
from cqd_hub.run.space import core_bytes

_MEASUREMENT = 290  # bytes of a journal row with a short answer, indices included
_REPORT = 2 << 20
_FINALISTS = 4  # beside the experts and the best elites of the archives, some of which are one
_CANDIDATES = 18  # equal merge, eight scalings, eight elites, aggregate
_LINK = 12e9  # bytes a second from pinned memory to a GPU
_HOST = 900 << 20  # a process with torch, transformers and lm-eval in it


class Seconds(NamedTuple):
    """Of one individual's evaluation."""

    materialise: float
    generate: float
    execute: float


@dataclass(frozen=True)
class Plan:
    """What a run will take; bytes and seconds.

    Args:
        device: Where the model is.
        dtype: Of its weights.
        engine: Which, and why.
        weights: Where what children are summed from is kept.
        memory: What → bytes on the device.
        host: Bytes of the process's memory.
        disk: What → bytes: ``download``, ``basis`` (both kept for later runs), ``run``, ``merges``.
        child: Of one child.
        children: How many there will be.
        seconds: Phase → wall time: ``factoring``, ``experts``, ``children``, ``finish``.
        rates: What was measured.
        assumed: What was not known.
    """

    device: str
    dtype: str
    engine: Choice
    weights: Weights
    memory: Mapping[str, int]
    host: int
    disk: Mapping[str, int]
    child: Seconds
    children: int
    seconds: Mapping[str, float]
    rates: Rates
    assumed: tuple[str, ...]

    @property
    def per_child(self) -> float:
        """Wall time from one child to the next."""
        return self.seconds["children"] / self.children if self.children else 0.0

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        record = asdict(self)
        parts = ("engine", "child", "rates")
        record |= {part: getattr(self, part)._asdict() for part in parts}
        record["per_child_seconds"] = self.per_child
        record["total_seconds"] = sum(self.seconds.values())
        return record


def load_of(recipe: Recipe, work: Work, width: int = 1) -> Load:
    """What the engine holds at once."""
    mutation = recipe.variation.mutation
    demands = work.demand.values()
    return Load(
        rows=max(one.rows for one in demands),
        length=max(one.length for one in demands),
        batch_tokens=recipe.evaluation.batch_tokens,
        cores=mutation.kind == "svd" and mutation.of == "child",
        width=width,
    )


def predict(
    recipe: Recipe,
    survey: Survey,
    work: Work,
    rates: Rates,
    engine: Choice,
    *,
    device: str,
    dtype: torch.dtype,
    weights: Weights = "device",
    workers: int = 1,
) -> Plan:
    """Put everything together; see `Plan`.

    Several *workers* share a CPU's cores, but each has a GPU of its own.
    """
    step = recipe.search.children_per_step
    children = -(-recipe.search.children // step) * step
    load = load_of(recipe, work, engine.width)
    memory = on_device(
        survey.shape, load, engine=engine.kind, device=device, dtype=dtype, weights=weights
    )
    streamed = 0
    if weights == "host" and device != "cpu":
        streamed = on_host(survey.shape, load, device=device, dtype=dtype)
    cost = _Cost(survey, rates, recipe, device, dtype, engine, streamed)
    search, validation, test = (work.demand[s] for s in ("optimisation", "validation", "test"))
    child = cost.of(search, agree=AGREE, new=NEW)
    experts = len(recipe.experts)
    finalists = experts + len(recipe.skills) + _FINALISTS
    seconds = {
        "factoring": 2 * survey.factoring[0] / rates.multiply_single,
        "experts": cost.wall(cost.of(search, new=1.0))
        + experts * cost.wall(cost.of(search, new=NEW_EXPERT)),
        "children": children * cost.wall(child) / (1 if device == "cpu" else workers),
        "finish": _CANDIDATES * cost.wall(cost.of(validation, new=NEW_FINAL))
        + finalists * cost.wall(cost.of(test, new=NEW_FINAL)),
    }
    assumed = [
        *survey.unsure,
        *work.assumed,
        f"{AGREE:.0%} of a child's answers are a parent's, {NEW:.0%} are new to the judge",
    ]
    if not rates.measured:
        assumed.append("passes are reckoned from products and memory: no layers could be measured")
    if recipe.variation.crossover.method != "linear":
        assumed.append("what mergekit takes for each child is not counted")
    if streamed:
        assumed.append(f"{_LINK / 1e9:g} GB/s from the host's memory to the device")
    host = max(resident(), _HOST) + streamed
    host += sum(memory.values()) if device == "cpu" else memory["model"]
    return Plan(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        engine=engine,
        weights=weights,
        memory=memory,
        host=host,
        disk=_disk(recipe, survey, work, children, finalists),
        child=child,
        children=children,
        seconds=seconds,
        rates=rates,
        assumed=tuple(assumed),
    )


class _Cost:
    def __init__(
        self,
        survey: Survey,
        rates: Rates,
        recipe: Recipe,
        device: str,
        dtype: torch.dtype,
        engine: Choice,
        streamed: int,
    ) -> None:
        self._rates, self._device, self._dtype = rates, device, dtype
        self._shape, self._engine, self._streamed = survey.shape, engine, streamed
        self._batch = recipe.evaluation.batch_tokens
        mutation = recipe.variation.mutation
        self._cores = mutation.kind == "svd" and mutation.of == "child"

    def of(self, demand: Demand, *, agree: float = 0.0, new: float) -> Seconds:
        """Of one individual, a share of whose answers is a draft's word for word."""
        rates = self._rates
        apart = 1 - agree
        extra = 1.0
        together = 1
        if self._engine.kind == "population":
            extra = 1 + overhead(self._shape.layout, cores=self._cores)
            together = self._engine.width
        slots = max(1, self._batch // demand.length)
        tokens = demand.prompt + (demand.answer if agree else 0)
        decoded = apart * demand.answer * (LEFT if agree else 1.0)
        batches = max(1, math.ceil(apart * demand.rows / slots))
        passes = batches * demand.steps / together
        generate = tokens * rates.token * extra + passes * rates.step + decoded * rates.row * extra
        reading = demand.prompt * self._shape.cache_bytes(self._dtype.itemsize)
        generate += passes * apart * reading / rates.bandwidth
        executed = new * demand.executed * rates.execution
        return Seconds(self._materialise() if together == 1 else 0.0, generate, executed)

    def wall(self, seconds: Seconds) -> float:
        """One individual is generated for while another's answers are executed.

        On a CPU both want the same cores.
        """
        busy = seconds.materialise + seconds.generate
        return busy + seconds.execute if self._device == "cpu" else max(busy, seconds.execute)

    def _materialise(self) -> float:
        shape, rates = self._shape, self._rates
        moved = 2 * sum(shape.stored) + shape.parameters * self._dtype.itemsize
        work = 2.0 * sum(
            sum(ranks) * math.prod(slot.shape)
            for slot, ranks in zip(shape.layout.slots, shape.layout.ranks, strict=True)
            if slot.is_matrix
        )
        made = moved / rates.bandwidth + work / rates.multiply
        return max(made, self._streamed / _LINK)


def _disk(
    recipe: Recipe, survey: Survey, work: Work, children: int, finalists: int
) -> dict[str, int]:
    layout = survey.shape.layout
    genome = 4 * layout.size
    mutation = recipe.variation.mutation
    if mutation.kind == "svd" and mutation.of == "child":
        genome += core_bytes(layout)
    individuals = children + len(recipe.experts) + 1
    rows = individuals * work.demand["optimisation"].samples
    rows += _CANDIDATES * work.demand["validation"].samples
    rows += finalists * work.demand["test"].samples
    found = {
        "download": survey.download,
        "basis": survey.factoring[1],
        "run": (individuals + _CANDIDATES) * genome + rows * _MEASUREMENT + _REPORT,
    }
    if recipe.variation.crossover.method != "linear":
        whole = sum(survey.shape.stored)
        found["merges"] = min(max(recipe.genome.disk_bytes, whole), children * whole)
    return {what: size for what, size in found.items() if size}
