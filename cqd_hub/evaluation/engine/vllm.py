"""The third engine: vLLM answers, one individual at a time, its weights handed over on the GPU.

Written from the source and documentation of vLLM 0.32.0 and 0.33.0; it has never been run.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import reduce_tensor

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.engine._canonical import Canonical
from cqd_hub.evaluation.engine._handover import tensors_of
from cqd_hub.evaluation.engine._interface import Candidate, Reply, Request
from cqd_hub.evaluation.engine._queue import Job, Loop
from cqd_hub.evaluation.engine._vllm_loop import VllmLoop, as_error
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, Genome

if TYPE_CHECKING:
    from cqd_hub.genome.held import Weights
    from cqd_hub.genome.merge.store import MergeStore

_FROM, _BELOW = (0, 32), (0, 34)
_SHARE = 0.5  # of the memory that is free beside the resident model: factors are read later
_ENVIRONMENT = {
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # IPC handles go to vLLM's own process as pickles
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}


def check_vllm(device: str) -> None:
    """Whether vLLM can answer on *device*, before anything is loaded.

    Raises:
        UserError: vLLM is not installed, is of another version, or has no GPU.
    """
    wanted = ">={}.{},<{}.{}".format(*_FROM, *_BELOW)
    remedy = f"pip install 'vllm{wanted}', or use sequential, population or auto"
    try:
        found = version("vllm")
    except PackageNotFoundError:
        raise UserError("vLLM is not installed", where="evaluation.engine", remedy=remedy) from None
    if not _FROM <= tuple(int(part) for part in found.split(".")[:2]) < _BELOW:
        raise UserError(
            f"vLLM is {found}, this needs {wanted}", where="evaluation.engine", remedy=remedy
        )
    if device not in ("cuda", "cuda:0"):
        raise UserError(
            f"vLLM needs the first GPU that CUDA shows, not {device}",
            where="evaluation.device",
            remedy="set CUDA_VISIBLE_DEVICES and device: cuda, or another evaluation.engine",
        )


class VllmEngine(SequentialEngine):
    """Children are answered by vLLM; `canonical` by the model they are written into beforehand.

    That model is what is handed over: its tensors' CUDA handles go to vLLM's process, which loads
    them as it would a checkpoint. Answers depend on what it batches together. Drafts are not used.

    Args:
        basis: As for `SequentialEngine`; so are the other options.

    Raises:
        UserError: What `check_vllm` says; the vocabulary is longer than the base's own.
        RunError: vLLM does not start.
    """

    def __init__(
        self,
        basis: Basis,
        *,
        device: str,
        dtype: torch.dtype,
        batch_tokens: int = 65536,
        merges: MergeStore | None = None,
        weights: Weights = "device",
    ) -> None:
        check_vllm(device)
        if basis.base.vocabulary is not None:
            raise UserError(
                "vLLM takes no tokens beyond the base's own, and experts have added some",
                where="evaluation.engine",
                remedy="use sequential, population or auto",
            )
        super().__init__(
            basis,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            merges=merges,
            weights=weights,
        )
        self._basis = basis
        self._held: Genome | None = None
        with as_error():
            self._llm = _start(basis, str(dtype).removeprefix("torch."))
        # A log-likelihood takes room for one token more.
        self._context = min(self._context, self._llm.model_config.max_model_len - 1)
        self._slow = self._loop
        self._fast = VllmLoop(self._llm.llm_engine, self._tokenizer, self._ends, self.counts)
        self._sequential_path = self._path
        self._path = self._path.replace("sequential", "vllm")
        self._alone: set[asyncio.Future[Reply]] = set()

    @property
    def canonical(self) -> Canonical:
        """The resident model, without vLLM."""
        return Canonical(self, partial(self.submit, alone=True), self._sequential_path)

    def submit(
        self, candidate: Candidate, request: Request, *, alone: bool = False
    ) -> asyncio.Future[Reply]:
        """Queue a request; see `Engine.submit`. With *alone*, on the sequential path."""
        future = super().submit(candidate, request)
        if alone:
            self._alone.add(future)
            future.add_done_callback(self._alone.discard)
        return future

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        self._loop = self._slow
        del self._fast, self._llm  # vLLM's process ends with the last reference to it
        gc.collect()

    def _mine(self, job: Job) -> bool:
        return (job.future in self._alone) == (self._loop is self._slow)

    async def _intake(self) -> list[Job]:
        waiting = [job.future for job in self._waiting if not job.future.done()]
        if waiting and not len(self._loop):
            loop: Loop = self._slow if self._alone.issuperset(waiting) else self._fast
            if loop is not self._loop:
                self._loop, self._resident = loop, None
        return await super()._intake()

    def _become(self, candidate: Candidate) -> None:
        super()._become(candidate)
        if self._loop is self._slow or self._held is candidate.genome:
            return
        start = time.perf_counter()
        self._resident = self._held = None
        with as_error():
            _hand_over(self._llm, tensors_of(self._basis, self._parameters))
        self._resident, self._held = candidate, candidate.genome
        self.seconds["materialise"] += time.perf_counter() - start


def _start(basis: Basis, dtype: str) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    free, total = torch.cuda.mem_get_info()
    llm = LLM(
        model=str(basis.base.checkpoint.path),
        tokenizer=str(basis.base.tokenizer),
        trust_remote_code=False,
        dtype=dtype,
        max_model_len=-1,  # as long as fits
        gpu_memory_utilization=_SHARE * free / total,
        weight_transfer_config=WeightTransferConfig(backend="ipc"),
    )
    llm.init_weight_transfer_engine({"init_info": {}})
    return llm


def _hand_over(llm: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Make vLLM hold these weights, and nothing that it computed with others."""
    if not llm.reset_prefix_cache(reset_running_requests=True):
        raise RunError("vLLM keeps what it computed for the individual before")
    gpu = torch.cuda.current_device()
    uuid = str(torch.cuda.get_device_properties(gpu).uuid)
    kept = [(name, tensor.detach().to("cuda").contiguous()) for name, tensor in tensors]
    torch.cuda.synchronize()
    info = {
        "names": [name for name, _ in kept],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in kept],
        "shapes": [list(tensor.shape) for _, tensor in kept],
        "ipc_handles": [{uuid: reduce_tensor(tensor)[1]} for _, tensor in kept],
    }
    llm.start_weight_update()
    llm.update_weights({"update_info": info})
    llm.finish_weight_update()  # until here *kept* must live
    torch.cuda.ipc_collect()
