"""What it takes to rebuild an individual from base and experts: numpy only.

Per weight matrix j, over the experts e with task vectors τ_e = U_e diag(S_e) V_eᵀ::

    W_j = W0_j + Σ_e [ t_ej τ_ej + U_ej diag((g_ej - t_ej) ⊙ S_ej) V_ejᵀ ]
               + Q_b,j C_j Q_a,jᵀ + Σ_n ω_nj N(seed_n)_j + Σ_m ω_mj (M_mj - W0_j)

The first sum is closed under linear crossover and under SVD mutation of an expert's own
directions. ``cores`` C holds what SVD mutation of the *child's* task vector adds, in the
orthonormal frame of all experts' directions. ``noise`` holds Gaussian mutations as seeds.
``merges`` M are points made by methods that no weighted sum expresses (ties, slerp, …), kept as the
records that make them again. All four are linear, so a crossover is a weighted sum of genomes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from cqd_hub.genome.layout import Layout
from cqd_hub.genome.merge.record import Merge

_FORMAT = "1"
_WITH_MERGES = "2"  # what reads only format 1 would leave them out


@dataclass(frozen=True)
class Genome:
    """One individual: a point in the space that base, experts and merges span.

    Args:
        basis: Hash of the basis that gives the coefficients their meaning.
        coefficients: ``[layout.size]`` float32; ones for one expert alone rebuild that expert.
        cores: Slot name → ``[R_b, R_a]`` float32 additive core.
        noise: Seed → ``[slots]`` float32 standard deviation of that seed's normal draws.
        merges: Merge → ``[slots]`` float32 weight of its difference from the base.
    """

    basis: str
    coefficients: np.ndarray
    cores: Mapping[str, np.ndarray] = field(default_factory=dict)
    noise: Mapping[int, np.ndarray] = field(default_factory=dict)
    merges: Mapping[Merge, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Sums over these are rounded: equal genomes, made or read, must be summed in one order.
        noise = sorted(self.noise.items(), key=lambda item: item[0])
        merges = sorted(self.merges.items(), key=lambda item: item[0].id)
        object.__setattr__(self, "noise", dict(noise))
        object.__setattr__(self, "merges", dict(merges))

    @classmethod
    def of_base(cls, basis: str, layout: Layout) -> Genome:
        """The base model itself: every coefficient 0."""
        return cls(basis, np.zeros(layout.size, dtype=np.float32))

    @classmethod
    def of_expert(cls, basis: str, layout: Layout, expert: int) -> Genome:
        """Expert number *expert*: its own coefficients 1, all others 0."""
        return cls(basis, (layout.expert_of == expert).astype(np.float32))

    @classmethod
    def of_merge(cls, basis: str, layout: Layout, merge: Merge) -> Genome:
        """What a merge makes, and nothing else."""
        weights = np.ones(len(layout.slots), dtype=np.float32)
        return cls(basis, np.zeros(layout.size, dtype=np.float32), merges={merge: weights})

    def to_bytes(self) -> bytes:
        """Serialise as safetensors (little-endian fp32; metadata holds basis and merges)."""
        metadata = {"format": _FORMAT, "basis": self.basis}
        if self.merges:
            metadata |= {"format": _WITH_MERGES}
            metadata |= {"merges": json.dumps(sorted(merge.text for merge in self.merges))}
        return save_safetensors(self._tensors(), metadata)

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {"coefficients": self.coefficients}
        tensors |= {f"core:{name}": core for name, core in self.cores.items()}
        tensors |= {f"noise:{seed}": scales for seed, scales in self.noise.items()}
        tensors |= {f"merge:{merge.id}": weights for merge, weights in self.merges.items()}
        return {key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())}

    @classmethod
    def from_bytes(cls, data: bytes) -> Genome:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: Not a genome, or one of a newer format.
        """
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") not in (_FORMAT, _WITH_MERGES):
            known = f"known are {_FORMAT!r} and {_WITH_MERGES!r}"
            raise ValueError(f"genome format {metadata.get('format')!r}, {known}")
        tensors = load_safetensors(data)
        merges = [Merge(text) for text in json.loads(metadata.get("merges", "[]"))]
        return cls(
            basis=metadata["basis"],
            coefficients=tensors.pop("coefficients"),
            cores={name[5:]: core for name, core in tensors.items() if name.startswith("core:")},
            noise={
                int(name[6:]): row for name, row in tensors.items() if name.startswith("noise:")
            },
            merges={merge: tensors[f"merge:{merge.id}"] for merge in merges},
        )

    @property
    def hash(self) -> str:
        """SHA-256 over basis, names, shapes and values (safetensors does not order its header).

        A merge's name is the hash of its record.
        """
        digest = hashlib.sha256(f"{_FORMAT} {self.basis}".encode())
        for key, value in self._tensors().items():
            digest.update(f"{key} {value.shape}".encode())
            digest.update(value.astype("<f4").tobytes())
        return digest.hexdigest()


def combine(genomes: Sequence[Genome], weights: np.ndarray, layout: Layout) -> Genome:
    """Return Σ_i w_i · genome_i on task vectors.

    Args:
        genomes: n genomes of one basis.
        weights: ``[n]``, or ``[n, slots]`` for weights that differ by slot.
        layout: The basis's layout.
    """
    bases = {genome.basis for genome in genomes}
    if len(bases) != 1:
        raise ValueError(f"genomes of {len(bases)} different bases do not combine")
    table = np.asarray(weights, dtype=np.float64)
    if table.ndim == 1:
        table = np.repeat(table[:, None], len(layout.slots), axis=1)
    coefficients = np.zeros(layout.size)
    cores: dict[str, np.ndarray] = {}
    noise: dict[int, np.ndarray] = {}
    merges: dict[Merge, np.ndarray] = {}
    number = {slot.name: index for index, slot in enumerate(layout.slots)}
    for genome, row in zip(genomes, table, strict=True):
        coefficients += row[layout.slot_of] * genome.coefficients
        for name, core in genome.cores.items():
            cores[name] = cores.get(name, 0.0) + row[number[name]] * core.astype(np.float64)
        for seed, scales in genome.noise.items():
            noise[seed] = noise.get(seed, 0.0) + row * scales.astype(np.float64)
        for merge, weights_of in genome.merges.items():
            merges[merge] = merges.get(merge, 0.0) + row * weights_of.astype(np.float64)
    return Genome(
        bases.pop(),
        coefficients.astype(np.float32),
        {name: core.astype(np.float32) for name, core in cores.items()},
        {seed: scales.astype(np.float32) for seed, scales in noise.items()},
        {merge: row.astype(np.float32) for merge, row in merges.items() if row.any()},
    )
