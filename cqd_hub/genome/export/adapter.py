"""An individual as a PEFT LoRA adapter of the base."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save_file

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.experts import LowRank
from cqd_hub.genome.export.deltas import Deltas, truncated
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.genome import Genome

Purpose = Literal["attach", "merge"]
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")


class AdapterExport(NamedTuple):
    """What was written.

    ``relative_error`` is ‖τ - written‖ / ‖τ‖ over the whole task vector, rounding to a half
    precision included; 0 for an exact fp32 adapter. ``rank`` is the largest of any module.
    """

    path: Path
    bytes: int
    rank: int
    relative_error: float


def export_adapter(
    genome: Genome,
    basis: Basis,
    out: Path,
    *,
    base_name: str,
    rank: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    vectors: bool = True,
    purpose: Purpose = "attach",
) -> AdapterExport:
    """Write the individual as a LoRA adapter that PEFT loads onto the base.

    Each module has its own rank (``rank_pattern`` with an equal ``alpha_pattern``: scaling 1);
    norms go in ``modules_to_save``. Tails, Gaussian noise and full-rank experts make some modules
    full rank: exact then costs more bytes than a checkpoint; give a *rank* or export one.

    Args:
        base_name: Hub id or path of the base, written into the config.
        rank: Truncate every module to this rank; exact unless given.
        dtype: Of the factors.
        vectors: Whether norms are written; leaving them out (some servers refuse
            ``modules_to_save``) is counted in the stated error.
        purpose: Matters only for tied embeddings. ``"attach"`` is right as long as the adapter
            stays attached, ``"merge"`` once it is merged (``merge_and_unload``): PEFT merges an
            adapter of both ends twice into their one weight, and an adapter of the embedding
            alone leaves the head as it was until merged.

    Raises:
        UserError: *out* exists, *rank* < 1, the individual is the base, or it has biases, which an
            adapter cannot carry.
        RunError: Not enough space. Nothing is left behind.
    """
    if rank is not None and rank < 1:
        raise UserError(f"{rank} is not a rank", where="rank", remedy="give 1 or more, or none")
    deltas = Deltas(genome, basis)
    total = lost = 0.0
    products: list[tuple[int, LowRank]] = []
    for index, exact in deltas.matrices():
        kept = exact if rank is None else truncated(exact, rank)
        rounded = LowRank(*(part.to(getattr(torch, dtype)) for part in kept))
        if rounded.up is not exact.up:
            whole = exact.up @ exact.down
            total += _energy(whole)
            lost += _energy(whole - rounded.up.float() @ rounded.down.float())
        else:
            total += _energy(torch.linalg.qr(exact.up).R @ exact.down)
        products.append((index, rounded))
    norms = {}
    for index, delta in deltas.vectors():
        name = basis.layout.slots[index].name
        total += _energy(delta)
        if not vectors:
            lost += _energy(delta)
        elif not name.endswith(".weight"):
            raise UserError(
                f"{name} differs from the base's, and an adapter cannot carry biases",
                where=str(out),
                remedy="export a checkpoint, or leave vectors out",
            )
        else:
            norms[name] = basis.base.checkpoint.tensor(name).float() + delta
    if not products:
        raise UserError(
            "no matrix of this individual differs from the base's",
            where=str(out),
            remedy="export a checkpoint",
        )
    config, tensors = _adapter(basis, products, norms, base_name=base_name, purpose=purpose)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with output_folder(out, needed=size) as folder:
        write_adapter(folder, config, tensors)
    largest = max(product.up.shape[1] for _, product in products)
    return AdapterExport(out, size, largest, (lost / total) ** 0.5)


def merging_adapter(
    basis: Basis, products: Iterable[tuple[int, LowRank]], *, base_name: str
) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """Config and tensors of an adapter of matrices that will be merged into the base."""
    return _adapter(basis, products, {}, base_name=base_name, purpose="merge")


def write_adapter(
    folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]
) -> None:
    """Write config and tensors in PEFT's layout."""
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _adapter(
    basis: Basis,
    products: Iterable[tuple[int, LowRank]],
    norms: dict[str, torch.Tensor],
    *,
    base_name: str,
    purpose: Purpose,
) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    tied = bool(basis.base.checkpoint.config.get("tie_word_embeddings"))
    ranks: dict[str, int] = {}
    tensors: dict[str, torch.Tensor] = {}
    ties = False
    for index, (up, down) in products:
        module = basis.layout.slots[index].name.removesuffix(".weight")
        key = f"base_model.model.{module}"
        ranks[module] = up.shape[1]
        if module.rsplit(".", 1)[-1] not in _EMBEDDINGS:
            tensors[f"{key}.lora_A.weight"] = down
            tensors[f"{key}.lora_B.weight"] = up
            continue
        tensors[f"{key}.lora_embedding_A"] = up.T
        tensors[f"{key}.lora_embedding_B"] = down.T
        if tied and purpose == "attach":
            ties, ranks["lm_head"] = True, up.shape[1]
            tensors["base_model.model.lm_head.lora_A.weight"] = down.clone()
            tensors["base_model.model.lm_head.lora_B.weight"] = up.clone()
    tensors |= {f"base_model.model.{name}": norm for name, norm in norms.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {module: rank for module, rank in sorted(ranks.items()) if rank != common}
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
        "modules_to_save": [name.removesuffix(".weight") for name in sorted(norms)] or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    if ties:
        config["ensure_weight_tying"] = True
    return config, {name: tensor.contiguous() for name, tensor in tensors.items()}


def _energy(delta: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
