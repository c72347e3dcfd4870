"""Experts with added tokens or padded vocabularies, brought to one number of rows.

Rows that an expert lacks are the base's: its task vector is zero there. Rows beyond the base's that
hold tokens are appended to the base, each as the mean of the experts that have it: every merge then
keeps them near a trained row. Rows beyond the base's that hold no token are padding, and dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cqd_hub.errors import UserError
from cqd_hub.files import sha256_of
from cqd_hub.genome.layout import Slot


class Donor(NamedTuple):
    """An expert as its vocabulary's rows.

    Args:
        path: Its folder, which may hold a tokenizer.
        rows: Slot name → rows that it stores.
        read: One slot with all of those rows.
        content_hash: Of the expert.
    """

    path: Path
    rows: Mapping[str, int]
    read: Callable[[Slot], torch.Tensor]
    content_hash: str


@dataclass(frozen=True)
class Vocabulary:
    """The common vocabulary of a base and its experts.

    Args:
        rows: Of embedding and output head, in every individual.
        slots: Their names.
        tokenizer: The folder whose tokenizer knows every token.
        donors: Who have rows beyond the base's.
    """

    rows: int
    slots: frozenset[str]
    tokenizer: Path
    donors: tuple[Donor, ...] = ()

    @property
    def content_hash(self) -> str:
        """Hash of what the base is extended by."""
        parts = [str(self.rows), *(donor.content_hash for donor in self.donors)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def extension(self, slot: Slot, have: int) -> torch.Tensor:
        """Rows *have* … ``rows`` of one slot, fp32: the mean of the donors' rows."""
        total = torch.zeros(self.rows - have, *slot.shape[1:])
        count = torch.zeros(self.rows - have, *(1 for _ in slot.shape[1:]))
        for donor in self.donors:
            if slot.name not in donor.rows:  # an adapter that saved one end alone
                continue
            added = donor.read(slot)[have : self.rows].float()
            total[: len(added)] += added
            count[: len(added)] += 1
        return total / count.clamp_min(1)


def common_vocabulary(
    base: Path,
    rows: Mapping[str, int],
    donors: Sequence[Donor],
    note: Callable[[str], None],
) -> Vocabulary | None:
    """Compare the experts' vocabularies with the base's; None if there is nothing to reconcile.

    Args:
        base: The base's folder.
        rows: Its vocabulary slots and their rows.
        donors: The experts.
        note: Told what is extended, filled up or dropped.

    Raises:
        UserError: Another tokenizer than the base's, or two experts with different tokens under one
            number, or added rows that no tokenizer explains.
    """
    own = max(rows.values(), default=0)
    ours = _tokens(base) if _has_tokenizer(base) else {}
    wanted, giving = own, []
    for donor in donors:
        theirs = _tokens(donor.path) if _has_tokenizer(donor.path) else {}
        _same_tokens(donor, theirs, base, ours)
        stored, known = max(donor.rows.values(), default=own), max(theirs, default=-1) + 1
        if stored < own:
            note(f"expert {donor.path.name}: {own - stored} rows of vocabulary taken from the base")
        elif stored > own and not theirs:
            raise UserError(
                f"has {stored} rows of vocabulary, the base {own}, and no tokenizer that says "
                "what they are",
                where=str(donor.path),
                remedy="copy its tokenizer beside its weights",
            )
        elif stored > own and known <= own:
            note(f"expert {donor.path.name}: {stored - own} rows of vocabulary hold no token; cut")
        elif stored > own:
            giving.append(donor)
            wanted = max(wanted, min(stored, known))
    tokenizer = _tokenizer_of_all(base, ours, donors, note)
    if wanted > own:
        added = _tokens(tokenizer)
        names = ", ".join(added[i] for i in sorted(added) if own <= i < wanted)
        note(f"the base's vocabulary grows from {own} to {wanted} rows: {names[:80]}")
    lengths = {count for donor in donors for count in donor.rows.values()} | {own}
    if len(lengths) == 1 and tokenizer == base:
        return None
    return Vocabulary(wanted, frozenset(rows), tokenizer, tuple(giving) if wanted > own else ())


def _tokenizer_of_all(
    base: Path,
    ours: Mapping[int, str],
    donors: Sequence[Donor],
    note: Callable[[str], None],
) -> Path:
    """The folder whose tokenizer knows most of what experts added to the base's, or renamed in it.

    Raises:
        UserError: Two experts have different tokens under one number.
    """
    owner: dict[int, Path] = {}
    new: dict[Path, dict[int, str]] = {base: {}}
    for donor in donors:
        if not _has_tokenizer(donor.path):
            continue
        theirs = _tokens(donor.path)
        new[donor.path] = {i: token for i, token in theirs.items() if ours.get(i) != token}
        for index, token in new[donor.path].items():
            first = owner.setdefault(index, donor.path)
            if (other := new[first][index]) != token:
                raise UserError(
                    f"its token {index} is {token!r}, that of {first} is {other!r}",
                    where=str(donor.path),
                    remedy="merge experts that added the same tokens",
                )
    best = max(new, key=lambda folder: len(new[folder]))
    if lost := sorted(owner.keys() - new[best].keys()):
        token = new[owner[lost[0]]][lost[0]]
        note(f"the tokenizer of {best.name} is used, which lacks {token!r} ({len(lost)} lacking)")
    return best


def _same_tokens(
    donor: Donor, theirs: Mapping[int, str], base: Path, ours: Mapping[int, str]
) -> None:
    """Refuse another tokenizer; a few reserved tokens may have got a name."""
    other = [number for number, token in theirs.items() if ours.get(number, token) != token]
    if len(other) > len(ours) // 100:
        raise UserError(
            f"its token {other[0]} is {theirs[other[0]]!r}, that of the base {base} is "
            f"{ours[other[0]]!r} ({len(other)} differ)",
            where=str(donor.path),
            remedy="use experts fine-tuned from this base with its tokenizer",
        )


def _tokenizer_files(folder: Path) -> list[Path]:
    patterns = ("tokenizer*", "vocab.*", "merges.txt", "*.model", "added_tokens.json")
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def _has_tokenizer(folder: Path) -> bool:
    return bool(_tokenizer_files(folder))


_KNOWN: dict[str, dict[int, str]] = {}


def _tokens(folder: Path) -> dict[int, str]:
    """Number → token of the tokenizer in a folder (read once per content)."""
    # The model's type decides the tokenizer's class, and some classes add tokens of their own.
    deciding = [*_tokenizer_files(folder), *folder.glob("special_tokens*"), folder / "config.json"]
    key = " ".join(f"{file.name} {sha256_of(file)}" for file in deciding if file.is_file())
    if key not in _KNOWN:
        _KNOWN[key] = {number: token for token, number in _tokenizer(folder).get_vocab().items()}
    return _KNOWN[key]


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"has no usable tokenizer: {reason}",
            where=str(folder),
            remedy="copy tokenizer.json and tokenizer_config.json beside the weights",
        ) from None
