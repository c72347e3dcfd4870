"""A few seconds of measuring: what a pass of such a model costs on this device, and an answer's
execution.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cqd_hub.errors import CqdHubError
from cqd_hub.evaluation.engine.attention import use_row_attention
from cqd_hub.evaluation.engine.memory import Shape
from cqd_hub.recipe.schema import Evaluation
from cqd_hub.run.plan._timing import Now, Stopwatch

_LARGE = 1 << 28  # bytes of a layer beyond which two are not tried
_VOCABULARY = 4096  # rows of the probe's
_PATIENCE = 0.05  # seconds that one of its prefills may take
_PASSES = 0.2  # seconds for each number of rows and threads
_STEPS = 6  # tokens that it decodes
_ROUNDS = 8  # of trivial answers; others may have the cores in some
_BLOCK = 1 << 26  # bytes that are copied to measure the memory


class Rates(NamedTuple):
    """What this device does with a model of this shape.

    Args:
        multiply: Floating-point operations per second of wide products, in the model's dtype.
        multiply_single: The same in fp32.
        bandwidth: Bytes per second that memory is read or written with.
        token: Seconds for one more prompt token in a wide pass.
        step: Seconds of a decoding pass, however many rows it has.
        row: Seconds for one more row of it.
        execution: Seconds for one executed answer, all workers at work; 0 if nothing is executed.
        measured: Whether passes were measured on layers of this architecture, or are reckoned from
            products and memory alone.
    """

    multiply: float
    multiply_single: float
    bandwidth: float
    token: float
    step: float
    row: float
    execution: float = 0.0
    measured: bool = True


def calibrate(shape: Shape, folder: Path, *, device: str, dtype: torch.dtype) -> Rates:
    """Measure products, memory, and passes of one and two random layers.

    Takes three seconds, or more where others have the cores. The measuring thread is one beside
    another that has computed, as in a run: there OpenMP puts helpers to sleep while they wait, and
    a small model's passes take up to half as long again.

    Args:
        shape: Of the models.
        folder: Of the base's config.
        device: Where the run will be.
        dtype: Of the run.
    """
    torch.ones(512, 512) @ torch.ones(512, 512)  # starts this thread's helpers
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_measure, shape, folder, device, dtype).result()


def _measure(shape: Shape, folder: Path, device: str, dtype: torch.dtype) -> Rates:
    watch = Stopwatch(torch.device(device))
    with torch.inference_mode():
        multiply = _products(shape, watch, dtype)
        single = multiply if dtype == torch.float32 else _products(shape, watch, torch.float32)
        bandwidth = _memory(watch)
        probed = _probe(shape, folder, watch, dtype, multiply)
    if probed is None:
        size, weights = dtype.itemsize, shape.in_layers
        token = 2 * weights / multiply
        step = weights * size / bandwidth + 3e-4 * shape.config.num_hidden_layers
        return Rates(multiply, single, bandwidth, token, step, token, measured=False)
    return Rates(multiply, single, bandwidth, *probed)


def _products(shape: Shape, watch: Stopwatch, dtype: torch.dtype) -> float:
    """Operations per second of a product with the kind of matrix that holds most weights."""
    count: dict[tuple[int, ...], int] = {}
    for slot in shape.layout.slots:
        if slot.is_matrix and slot.shape[0] != shape.config.vocab_size:
            count[slot.shape] = count.get(slot.shape, 0) + 1
    wide = max(count, key=lambda s: count[s] * s[0] * s[1], default=(1024, 1024))
    rows, columns = (min(size, 8192) for size in wide)
    left = torch.full((256, columns), 0.01, device=watch.device, dtype=dtype)
    right = torch.full((rows, columns), 0.01, device=watch.device, dtype=dtype)
    seconds = _best(lambda: torch.nn.functional.linear(left, right), watch)
    return 2.0 * 256 * rows * columns / seconds


def _memory(watch: Stopwatch) -> float:
    source = torch.ones(_BLOCK // 4, device=watch.device)
    target = torch.empty_like(source)
    return 2.0 * _BLOCK / _best(lambda: target.copy_(source), watch)


def _best(work: Callable[[], Any], watch: Stopwatch) -> float:
    def timed(now: Now) -> list[float]:
        watch.settle()
        start = now()
        work()
        watch.settle()
        return [now() - start]

    return max(watch.shortest(timed, patience=0.1)[0], 1e-7)


def _probe(
    shape: Shape,
    folder: Path,
    watch: Stopwatch,
    dtype: torch.dtype,
    multiply: float,
) -> tuple[float, float, float] | None:
    """(token, step, row) of a pass, from random layers; None where the architecture resists."""
    layers = shape.config.num_hidden_layers
    size = shape.in_layers / max(layers, 1) * dtype.itemsize
    try:
        # So many tokens of two layers, reckoned from what products take.
        tokens = int(_PATIENCE * multiply * layers / (4.0 * max(shape.in_layers, 1)))
        first = _passes(folder, 1, watch, dtype, tokens)
        second = None
        if size < _LARGE and layers > 1:
            second = _passes(folder, 2, watch, dtype, tokens)
    except Exception:  # whatever an architecture's configuration or forward raises
        return None
    rows = min(shape.config.vocab_size, _VOCABULARY)
    hidden = shape.config.hidden_size
    more = (shape.config.vocab_size - rows) * hidden
    head = _head(rows, hidden, watch, dtype) if more > 0 else (0.0, 0.0)
    if second is None:
        whole = [layers * part for part in first]
    else:
        whole = [a + (layers - 1) * max(b - a, 0.0) for a, b in zip(first, second, strict=True)]
    token, step, row = whole
    return token, step + more * head[0], row + more * head[1]


def _head(rows: int, hidden: int, watch: Stopwatch, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds per weight of the head: of a pass, and for each row more."""
    weight = torch.full((rows, hidden), 0.01, device=watch.device, dtype=dtype)
    few, many = (torch.full((n, hidden), 0.01, device=watch.device, dtype=dtype) for n in (4, 64))
    linear = torch.nn.functional.linear
    short = _best(lambda: linear(few, weight), watch)
    long = _best(lambda: linear(many, weight), watch)
    slope = max(long - short, 0.0) / 60
    return max(short - 4 * slope, 0.0) / weight.numel(), slope / weight.numel()


def _passes(
    folder: Path,
    layers: int,
    watch: Stopwatch,
    dtype: torch.dtype,
    tokens: int,
) -> tuple[float, float, float]:
    """(seconds per prompt token, per decoding pass, per row of it) of some layers and a head."""
    from cqd_hub.evaluation.engine._interface import Generate
    from cqd_hub.evaluation.engine._slots import SlotLoop

    model = _random_model(folder, layers, watch.device, dtype)
    most = model.get_input_embeddings().num_embeddings

    def timed(rows: int, now: Now) -> list[float]:
        """Seconds of reading prompts, and of each decoding pass."""
        marks = list[float]()

        def mark(*_: Any) -> None:
            watch.settle()
            marks.append(now())

        loop: SlotLoop[int] = SlotLoop(model, _Mute, frozenset(), batch_tokens=1 << 20, assign=mark)
        for row in range(rows):
            prompt = tuple((7 * row + n) % most for n in range(length))
            loop.add(row, Generate(prompt, 1 + _STEPS))
        watch.settle()
        start = now()
        while len(loop):
            loop.advance()
        read, steps = marks[-_STEPS] - start, marks[-_STEPS:]
        return [read, min(after - before for before, after in pairwise(steps))]

    length = 48 if tokens > 48 * 16 else 16
    many = min(max(tokens // length, 4), 192)
    few = max(many // 12, 1)
    (read_few, step_few), (read_many, step_many) = (
        watch.shortest(partial(timed, rows), patience=_PASSES) for rows in (few, many)
    )
    row = max(step_many - step_few, 0.0) / (many - few)
    token = max(read_many - read_few, 0.0) / ((many - few) * length)
    return token, max(step_few - few * row, 0.0), row


class _Mute:
    """A tokenizer for answers that nobody reads."""

    @staticmethod
    def decode(*_: Any, **__: Any) -> str:
        return ""


def _random_model(folder: Path, layers: int, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.vocab_size = min(text.vocab_size, _VOCABULARY)
    text.pad_token_id = text.eos_token_id = text.bos_token_id = None
    with no_init_weights(), device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    use_row_attention(model)  # as the engine's
    return model.requires_grad_(False).eval()


async def execution_seconds(settings: Evaluation) -> float:
    """Seconds per trivial answer with all of a run's boxes at work; 0 if there is no sandbox."""
    from cqd_hub.evaluation.sandbox import PythonCall, open_sandbox

    try:
        opened = await open_sandbox(
            settings.sandbox, workers=settings.sandbox_workers, image=settings.sandbox_image
        )
        async with opened as sandbox:
            program = PythonCall("def f(x): return x", "f", ((1,),))
            count = 2 * settings.sandbox_workers
            await asyncio.gather(*(sandbox.run(program) for _ in range(count)))
            best = float("inf")
            for _ in range(_ROUNDS):
                start = time.perf_counter()
                await asyncio.gather(*(sandbox.run(program) for _ in range(count)))
                best = min(best, (time.perf_counter() - start) / count)
            return best
    except CqdHubError:  # the run will say so where it matters
        return 0.0
