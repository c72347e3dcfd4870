"""The evolve recipe as pydantic models; their field descriptions are the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cqd_hub.recipe.load import Strict
from cqd_hub.recipe.presets import PRESETS, Preset

Split = Literal["optimisation", "validation", "test"]
SPLITS: tuple[Split, ...] = ("optimisation", "validation", "test")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[str, Field(min_length=1)]
# What commands call other individuals of a run; experts must be told from them.
RESERVED = ("base", "best", "aggregate")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Splits(Strict):
    """Dataset splits to draw samples from, each as ``name``, ``name[start:stop]`` (also in %) or
    ``name[start:stop:step]``, or several of these joined by ``+``.
    """

    optimisation: str
    validation: str
    test: str


class Limits(Strict):
    """At most so many samples of each split, the first ones; ``null`` takes all."""

    optimisation: Annotated[int, Field(ge=2)] | None = 150
    validation: Annotated[int, Field(ge=2)] | None = 200
    test: Annotated[int, Field(ge=2)] | None = None


class Skill(Strict):
    """Something that is scored 0..1 on a set of samples: an lm-eval task and one of its metrics, or
    the episodes of an environment.
    """

    task: str = Field(
        description="name of an lm-eval task or of an environment's manifest, or the path of the "
        "YAML of either"
    )
    metric: str = Field(
        default="executed",
        description="'metric' or 'metric,filter' of the task; 'executed' for tasks whose answers "
        "run in the sandbox, and for episodes",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="of the environment; over those of its manifest"
    )
    splits: Splits | None = Field(
        default=None,
        description="default: the dataset's own optimisation, validation and test splits, else "
        "50/20/30 % of the task's evaluation split",
    )
    samples: Limits | None = Field(default=None, description="overrides the recipe's `samples`")
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    chat_template: bool = Field(default=False, description="wrap prompts in the chat template")


class GridArchive(Strict):
    """A lattice over the other skills' scores."""

    kind: Literal["grid"] = "grid"
    bins: Annotated[int, Field(ge=1, le=1000)] = 15
    bounds: Literal["experts"] | dict[str, tuple[Share, Share]] = Field(
        default="experts",
        description="'experts': 85 % of the weakest to 115 % of the strongest expert, per skill; "
        "or skill: [low, high]",
    )
    clip: bool = Field(default=True, description="no cells above a score of 1 (the paper's has)")


class NoveltyArchive(Strict):
    """Grid-free: Dominated Novelty Search; for four skills and more."""

    kind: Literal["novelty"]
    capacity: Annotated[int, Field(ge=2)] = 64
    neighbours: Annotated[int, Field(ge=1)] = 3


class Sampling(Strict):
    """How parents are drawn from the active archive."""

    kind: Literal["elite", "random"] = "elite"
    low: Annotated[float, Field(gt=0)] = 0.5
    high: Annotated[float, Field(gt=0)] = 0.8

    @model_validator(mode="after")
    def _ordered(self) -> Sampling:
        if self.low > self.high:
            raise ValueError("low exceeds high; swap them")
        return self


class Search(Strict):
    """The cycle."""

    children: Annotated[int, Field(ge=0)] = Field(
        default=200, description="may grow when a run is resumed"
    )
    children_per_step: Annotated[int, Field(ge=1)] = Field(
        default=4, description="children made from one state of the archives; 1 is the paper"
    )
    archive: GridArchive | NoveltyArchive = Field(default=GridArchive(), discriminator="kind")
    sampling: Sampling = Sampling()
    early_stop: bool = Field(
        default=False,
        description="ask a child no more samples once it can enter no archive (grids only)",
    )

    @model_validator(mode="after")
    def _settled_for_good(self) -> Search:
        if self.early_stop and self.archive.kind != "grid":
            raise ValueError(
                "early_stop needs grid archives, whose elites only give way to better ones; "
                "leave it out or use archive: {kind: grid}"
            )
        return self


Number = Annotated[bool | int | float, Field(allow_inf_nan=False)]


class Crossover(Strict):
    """θ_base + Σ w_i/(w_1+w_2) τ_i with w ~ N(mean, deviation²); or a merge method of mergekit's.

    Of a method, the shares w_i/(w_1+w_2) are the parents' ``weight`` (of ``slerp``, the second
    one's is ``t``) unless `parameters` gives it.
    """

    method: Name = Field(
        default="linear",
        description="linear, or a merge method that mergekit registers: ties, dare_ties, slerp, …",
    )
    parameters: dict[str, Number | list[Number]] = Field(
        default_factory=dict, description="of the method: a number, or one for each parent"
    )
    per: Literal["model", "layer", "matrix"] = "model"
    mean: float = 1.0
    deviation: Annotated[float, Field(ge=0)] = 0.03

    @model_validator(mode="after")
    def _drawable(self) -> Crossover:
        # Pairs whose sum is within 0.1 of zero are drawn again: some must lie outside.
        if abs(self.mean) + self.deviation < 0.05:
            raise ValueError("mean and deviation are too near zero; keep mean at 1")
        return self

    @model_validator(mode="after")
    def _named(self) -> Crossover:
        if self.parameters and self.method == "linear":
            raise ValueError("linear takes no `parameters`; leave them out or name a method")
        return self


class Mutation(Strict):
    """Adds U diag(w ⊙ S) Vᵀ with w ~ U(0, w_max); or Gaussian noise; or nothing."""

    kind: Literal["svd", "gaussian", "none"] = "svd"
    of: Literal["expert", "child"] = Field(
        default="expert", description="whose singular directions: the active skill's expert's"
    )
    w_max: Annotated[float, Field(gt=0)] = 0.3
    zero_mean: bool = Field(default=False, description="w ~ U(-w_max, w_max)")
    per: Literal["direction", "matrix", "layer", "model"] = Field(
        default="direction", description="what shares one draw (`of: expert` only)"
    )
    deviation: Annotated[float, Field(gt=0)] = Field(
        default=1e-3, description="standard deviation of Gaussian noise"
    )

    @model_validator(mode="after")
    def _coherent(self) -> Mutation:
        if self.of == "child" and self.per != "direction":
            raise ValueError("`of: child` draws per direction only; leave `per` out")
        return self


def _spelt_out(variation: Any) -> Any:
    """*variation* with names replaced by the mappings they stand for."""
    if not isinstance(variation, Mapping):
        return variation
    keys = {"crossover": "method", "mutation": "kind"}
    return {
        part: {keys[part]: value} if part in keys and isinstance(value, str) else value
        for part, value in variation.items()
    }


class Variation(Strict):
    """How a child is made from two parents; a name alone is short for its mapping."""

    crossover: Crossover = Crossover()
    mutation: Mutation = Mutation()

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, data: Any) -> Any:
        return _spelt_out(data)


class Genome(Strict):
    """What of a full fine-tune can be scaled on its own (of a LoRA expert: everything)."""

    rank: Annotated[int, Field(ge=1)] | Literal["full"] = "full"
    tail: Literal["tied", "drop"] = "tied"
    disk: str = Field(
        default="20GB",
        description="what merged children may take of it (crossover methods other than linear); "
        "more are made again when needed. May change when a run is resumed",
    )

    @field_validator("disk", mode="before")
    @classmethod
    def _is_size(cls, disk: Any) -> Any:
        if not isinstance(disk, str) or not re.fullmatch(r"\d+(\.\d+)? ?(KB|MB|GB|TB)", disk):
            raise ValueError(f"{disk!r} is no size; write e.g. 20GB")
        return disk

    @property
    def disk_bytes(self) -> int:
        """`disk` in bytes."""
        return int(float(self.disk[:-2]) * _UNITS[self.disk[-2:]])


class Aggregation(Strict):
    """β = softmax over the archives' best scores · unit / temperature."""

    unit: Literal[1, 100] = 1
    temperature: Annotated[float, Field(gt=0)] = 1.0


class Evaluation(Strict):
    """Where and how answers are generated and executed."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="float32 on a CPU, bfloat16 on a GPU"
    )
    engine: Literal["auto", "sequential", "population", "vllm"] = Field(
        default="auto",
        description="how children are evaluated: one after the other, side by side in one batch, "
        "or one after the other by vLLM, which auto never chooses",
    )
    weights: Literal["auto", "device", "host"] = Field(
        default="auto",
        description="where base and experts are kept that children are made of: on the device, or "
        "in the host's memory, from where they are copied for every child. May change when a run "
        "is resumed",
    )
    batch_tokens: Annotated[int, Field(ge=256)] = Field(
        default=65536, description="rows × length of one batch, at most"
    )
    sandbox: Literal["auto", "bubblewrap", "landlock", "docker"] = "auto"
    sandbox_image: str | None = Field(default=None, description="Docker image with python3 and sh")
    sandbox_workers: Annotated[int, Field(ge=1)] = 2


class Recipe(Strict):
    """What `cqd-hub evolve` runs."""

    name: Name
    preset: Preset = Field(
        default="default", description="fills in what the recipe leaves out of search and variation"
    )
    base: Place = Field(
        description="the base model: a folder, relative to the recipe, or one of the Hub: ns/name, "
        "ns/name@revision, hf://…"
    )
    experts: dict[Name, Place] = Field(
        description="name: a fine-tune or LoRA adapter, given like the base"
    )
    skills: dict[Name, Skill]
    tasks: list[str] = Field(
        default_factory=list,
        description="folders with lm-eval task YAMLs and manifests, besides the shipped ones",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    samples: Limits = Limits()
    search: Search = Search()
    variation: Variation = Variation()
    genome: Genome = Genome()
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        preset = data.get("preset", "default") if isinstance(data, Mapping) else None
        if not isinstance(preset, str) or preset not in PRESETS:
            return data
        data = dict(data)
        if "variation" in data:
            data["variation"] = _spelt_out(data["variation"])
        return _merged(PRESETS[preset], data)

    @model_validator(mode="after")
    def _enough(self) -> Recipe:
        if len(self.skills) < 2:
            raise ValueError("skills: a search needs at least two; add one")
        if len(self.experts) < 2:
            raise ValueError("experts: a search needs at least two; add one")
        mutation, method = self.variation.mutation, self.variation.crossover.method
        if mutation.kind == "svd" and mutation.of == "child" and method != "linear":
            raise ValueError(
                f"variation.mutation.of: child cannot follow the crossover {method}, whose task "
                "vectors are not made of the experts' alone; use `of: expert`"
            )
        bounds = getattr(self.search.archive, "bounds", "experts")
        if isinstance(bounds, dict):
            if set(bounds) != set(self.skills):
                raise ValueError("search.archive.bounds: needs one [low, high] for each skill")
            for skill, (low, high) in bounds.items():
                if low >= high:
                    raise ValueError(f"search.archive.bounds.{skill}: low must be below high")
        for name in self.experts:
            if name in RESERVED or name.isdigit():
                raise ValueError(
                    f"experts.{name}: names something else on the command line; rename it"
                )
        return self

    def limits(self, skill: str) -> Limits:
        """The sample limits of one skill."""
        return self.skills[skill].samples or self.samples


def _merged(defaults: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    # Keys of one kind of archive, sampling or mutation mean nothing to another kind.
    if any(data.get(key, defaults.get(key)) != defaults.get(key) for key in ("kind", "of")):
        return dict(data)
    result = dict(defaults)
    for key, value in data.items():
        inner = result.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return result
