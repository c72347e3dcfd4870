"""Speculation along real lineages of the quickstart: passes per answer, wall time, acceptance.

    python benchmarks/speculation.py --children 24 --samples 120

Children of the shipped experts by the paper's operators, two generations deep. Every child answers
the same samples greedily, plainly and with its parents' stored answers as drafts; the runs are
interleaved, their answers compared token for token. `limit` is what drafts without an error (the
child's own answers) would give in wall time: every token still goes through the model once, as in
a prefill. `static` and `generate` are plain decoding in one static batch, by our own loop, which
drops rows as they end, and by transformers' `generate`, in wall time too. Sequential engine, fp32.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import time
import warnings
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from cqd_hub import assets
from cqd_hub.evaluation.engine import Candidate, Generate, Reply
from cqd_hub.evaluation.engine._decoding import _left_padded
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.genome import (
    Basis,
    Genome,
    build_basis,
    crossover,
    crossover_weights,
    mutate_child,
    mutate_expert,
    open_models,
)
from cqd_hub.randomness import generator
from cqd_hub.recipe import Recipe, load_yaml

OPERATORS = ("crossover", "expert", "child")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--children", type=int, default=16, help="per operator and step size")
    parser.add_argument("--samples", type=int, default=120, help="over all skills")
    parser.add_argument("--steps", type=float, nargs="+", default=[0.1, 0.3, 0.9], help="w_max")
    parser.add_argument("--threads", type=int, default=1, help="of torch; a run uses every core")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    recipes = assets.folder("recipes")
    folder = recipes / "quickstart" / "models"
    experts = [folder / name for name in ("coding", "os", "db")]
    basis = build_basis(*open_models(folder / "base", experts))
    engine = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    recipe = load_yaml(recipes / "quickstart.yaml", Recipe)
    requests = []
    for skill in load_skills(recipe, recipes, engine.tokenizer).values():
        taken = skill.samples["optimisation"][: arguments.samples // 3]
        requests += [sample.requests[0][0] for sample in taken]
    print(
        f"{'operator':>10}{'step':>6}{'same':>7}{'tokens':>8}{'one':>7}{'both':>7}"
        f"{'accepted':>10}{'plain':>8}{'both':>8}{'wall':>7}{'CPU':>7}{'limit':>7}{'static':>8}"
        f"{'generate':>10}"
    )
    asyncio.run(compare(engine, basis, requests, arguments))


async def compare(
    engine: SequentialEngine,
    basis: Basis,
    requests: list[Generate],
    arguments: argparse.Namespace,
) -> None:
    gc.collect()
    gc.freeze()  # as a run does
    async with engine:  # all along, likewise
        for operator in OPERATORS:
            for step in arguments.steps if operator != "crossover" else [0.0]:
                await report(engine, basis, requests, operator, step, arguments.children)


async def report(
    engine: SequentialEngine,
    basis: Basis,
    requests: list[Generate],
    operator: str,
    step: float,
    children: int,
) -> None:
    pool = [Genome.of_expert(basis.hash, basis.layout, n) for n in range(3)]
    said = [(await answer(engine, genome, requests))[0] for genome in pool]
    same = passes = one = both = tokens = proposed = accepted = 0
    wall, cpu = np.zeros(5), np.zeros(5)  # plain, both, known, static, generate
    for number in range(children):
        rng = generator(0, number, "benchmark")
        mother, father = rng.choice(len(pool), 2, replace=False)
        child = make(basis, (pool[mother], pool[father]), operator, step, rng)
        plain, *plainly = await answer(engine, child, requests)
        drafts = [
            (said[mother][place].tokens, said[father][place].tokens)
            for place in range(len(requests))
        ]
        single = [replace(r, drafts=d[:1]) for r, d in zip(requests, drafts, strict=True)]
        double = [replace(r, drafts=d) for r, d in zip(requests, drafts, strict=True)]
        alone, *_ = await answer(engine, child, single)
        before = replace(engine.counts)
        drafted, *with_drafts = await answer(engine, child, double)
        known = [replace(r, drafts=(a.tokens,)) for r, a in zip(requests, plain, strict=True)]
        certain, *at_best = await answer(engine, child, known)
        engine._loop._longest, longest = 0, engine._loop._longest  # no row fits a slot
        batched, *in_batches = await answer(engine, child, requests)
        engine._loop._longest = longest
        padded, *by_transformers = await asyncio.to_thread(generate, engine, requests)
        spent = np.array([plainly, with_drafts, at_best, in_batches, by_transformers])
        wall, cpu = wall + spent[:, 0], cpu + spent[:, 1]
        assert alone == plain == drafted == certain == batched  # token for token
        assert all(
            theirs[: len(mine.tokens)] == list(mine.tokens)
            for mine, theirs in zip(plain, padded, strict=True)
        )
        proposed += engine.counts.proposed - before.proposed
        accepted += engine.counts.accepted - before.accepted
        same += sum(reply.tokens in pair for reply, pair in zip(plain, drafts, strict=True))
        tokens += sum(len(reply.tokens) for reply in plain)
        passes += sum(reply.passes for reply in plain)
        one += sum(reply.passes for reply in alone)
        both += sum(reply.passes for reply in drafted)
        pool.append(child)
        said.append(plain)
    count = children * len(requests)
    print(
        f"{operator:>10}{step:>6}{same / count:>7.0%}{passes / count:>8.1f}{one / count:>7.2f}"
        f"{both / count:>7.2f}{accepted / max(proposed, 1):>10.0%}{wall[0] / children:>8.3f}"
        f"{wall[1] / children:>8.3f}{wall[0] / wall[1]:>7.2f}{cpu[0] / cpu[1]:>7.2f}"
        f"{wall[0] / wall[2]:>7.2f}{wall[3] / wall[1]:>8.2f}"
        f"{wall[4] / wall[1]:>10.2f}",
        flush=True,
    )


def make(basis: Basis, parents: tuple[Genome, Genome], operator: str, step: float, rng) -> Genome:  # type: ignore[no-untyped-def]
    groups = basis.layout.groups("model")
    shares = crossover_weights(rng, groups=groups, mean=1.0, deviation=0.03)
    child = crossover(parents, shares, basis)
    if operator == "expert":
        return mutate_expert(child, rng, basis=basis, expert=int(rng.integers(3)), w_max=step)
    if operator == "child":
        return mutate_child(child, rng, basis=basis, w_max=step)
    return child


async def answer(
    engine: SequentialEngine, genome: Genome, requests: list[Generate]
) -> tuple[list[Reply], float, float]:
    """Replies, and the wall and CPU seconds of generating them."""
    candidate = Candidate(0, genome)
    engine._become(candidate)
    start, spent = time.perf_counter(), time.process_time()
    replies = await asyncio.gather(*(engine.submit(candidate, r) for r in requests))
    return replies, time.perf_counter() - start, time.process_time() - spent


def generate(
    engine: SequentialEngine, requests: list[Generate]
) -> tuple[list[list[int]], float, float]:
    """What transformers generates for the resident individual, and its wall and CPU seconds."""
    model, tokenizer = engine._model, engine.tokenizer
    ids, mask, _ = _left_padded([request.prompt for request in requests], model.device)
    (stop,) = {request.stop for request in requests}
    (limit,) = {request.max_new_tokens for request in requests}
    start, spent = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        tokens = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(engine._ends),
            pad_token_id=0,
            stop_strings=list(stop),
            tokenizer=tokenizer,
        )
    taken = time.perf_counter() - start, time.process_time() - spent
    return tokens[:, ids.shape[1] :].tolist(), *taken


if __name__ == "__main__":
    main()
