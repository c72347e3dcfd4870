"""The commented recipe that `cqd-hub init` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

_HEAD = """\
# A cqd-hub recipe. Run it with: cqd-hub evolve {file}.yaml
name: {name}
seed: 0

# default, paper (arXiv 2410.14735) or released-code: fills in what is left out below.
preset: default

# Folders (relative ones start from this file), or models of the Hub: ns/name@revision. Experts
# are fine-tuned from this very base.
base: {base}
experts:
"""

_TAIL = """
# Samples of each skill: optimisation steers the search, validation chooses what to report,
# test is looked at when the run has finished. They never overlap.
samples:
  optimisation: 150
  validation: 200
  test: 400

search:
  children: 200          # may grow when the run is resumed
  children_per_step: 4   # made from one state of the archives; 1 is the paper
  archive: {kind: grid, bins: 15, bounds: experts}   # or {kind: novelty, capacity: 64}
  sampling: {kind: elite, low: 0.5, high: 0.8}       # or {kind: random}

variation:
  # per: model, layer or matrix; or any merge method of mergekit's: `crossover: ties`
  crossover: {per: model, mean: 1.0, deviation: 0.5}
  mutation: {kind: svd, of: expert, w_max: 0.5, per: layer}   # kind: svd, gaussian or none

# rank: full keeps every singular direction; a number keeps so many, the rest under one scale.
genome: {rank: full, tail: tied}

evaluation:
  device: auto
  dtype: auto            # float32 on a CPU, bfloat16 on a GPU
  sandbox: auto          # bubblewrap, landlock or docker
"""

_SKILLS_TO_FILL_IN = """\
  # At least two. Any lm-eval task by name and metric; `lm-eval ls tasks` lists them.
  # first: {task: gsm8k, metric: "exact_match,strict-match"}
  # second: {task: arc_easy, metric: acc}
"""


def render(
    *,
    name: str,
    base: str,
    experts: Sequence[tuple[str, str, str]],
    skills: Mapping[str, tuple[str, str]],
) -> str:
    """Return the recipe as YAML text.

    Args:
        name: Of the file without its ``.yaml``; the run's name is made of it.
        base: Folder.
        experts: (name, folder, what it is).
        skills: Name → (task, metric); empty leaves examples to fill in.
    """
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:64] or "run"
    text = _HEAD.format(file=name, name=_scalar(clean), base=_scalar(base))
    for expert, place, form in experts:
        text += f"  {_scalar(expert)}: {_scalar(place)}  # {form}\n"
    text += "\nskills:\n"
    for skill, (task, metric) in skills.items():
        text += f"  {_scalar(skill)}: {{task: {_scalar(task)}, metric: {_scalar(metric)}}}\n"
    if not skills:
        text += _SKILLS_TO_FILL_IN
    return text + _TAIL


def _scalar(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./-]*", text)
    special = text.lower() in ("null", "true", "false", "yes", "no", "on", "off")
    return text if plain and not special else json.dumps(text)
