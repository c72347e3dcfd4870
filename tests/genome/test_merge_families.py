"""Merges in every verified family, against mergekit's merge of the models in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mergekit.merge_methods import merge_state_dicts
from transformers import AutoModelForCausalLM

from cqd_hub.genome import Genome, Materialiser, build_basis, open_models
from cqd_hub.genome.export import export_checkpoint
from cqd_hub.genome.merge import Merge
from cqd_hub.genome.merge.store import MergeStore
from tests.genome.families import FAMILIES, fine_tune, make_model

PROMPT = torch.arange(2, 30)[None]


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    """At density 1: below it, a mixture's experts are thinned each on its own, not all together."""
    base = make_model(name, tmp_path / "base")
    experts = [
        fine_tune(base, tmp_path / f"expert{seed}", seed=seed, dtype=torch.float32)
        for seed in (1, 2)
    ]
    basis = build_basis(*open_models(base, experts), rank=2, cache=tmp_path / "cache")
    parents = [Genome.of_expert(basis.hash, basis.layout, number) for number in (0, 1)]
    store = MergeStore(
        tmp_path / "merges",
        budget=10**9,
        genome_of={parent.hash: parent for parent in parents}.__getitem__,
    )
    hashes = [parent.hash for parent in parents]
    merge = Merge.make("ties", parents=hashes, seed=0, parameters={"weight": [0.9, 0.6]})
    child = Genome.of_merge(basis.hash, basis.layout, merge)
    export_checkpoint(child, Materialiser(basis, merges=store), tmp_path / "child")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "child")

    models = {str(f): AutoModelForCausalLM.from_pretrained(f) for f in (base, *experts)}
    states = {
        key: {name: tensor.detach() for name, tensor in model.state_dict().items()}
        for key, model in models.items()
    }
    weights = dict(zip(map(str, experts), (0.9, 0.6), strict=True))
    merged = merge_state_dicts(states, "ties", parameters={"weight": weights}, base=str(base))
    for key, tensor in made.state_dict().items():
        assert torch.equal(tensor, merged[key]), key
    with torch.no_grad():
        mine, bases = made(PROMPT).logits, models[str(base)](PROMPT).logits
        models[str(base)].load_state_dict(merged)
        theirs = models[str(base)](PROMPT).logits
    assert torch.equal(mine, theirs)
    assert not torch.allclose(mine, bases, atol=1e-3)
