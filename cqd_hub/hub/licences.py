"""What a model's card says about its licence, and what that means for a merge of several.

A small table of what is common on the Hub, to warn with. It is no legal advice: licence texts
decide, and a card may be wrong about its own model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

Kind = Literal["permissive", "copyleft", "non-commercial", "own terms", "no derivatives"]

_PERMISSIVE = (
    *("apache-2.0", "mit", "mit-0", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "ncsa"),
    *("cc0-1.0", "unlicense", "wtfpl", "pddl", "odc-by", "cc-by-3.0", "cc-by-4.0", "artistic-2.0"),
    *("cdla-permissive-1.0", "cdla-permissive-2.0", "afl-3.0", "bsl-1.0", "postgresql", "ms-pl"),
)
_COPYLEFT = (
    *("gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0"),
    *("epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "osl-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("odbl", "gfdl", "cdla-sharing-1.0"),
)
_NON_COMMERCIAL = (
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("apple-amlr", "fair-noncommercial-research-license", "h-research", "intel-research"),
)
_OWN_TERMS = (
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "grok2-community"),
    *("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m"),
    *("bigscience-bloom-rail-1.0", "bigcode-openrail-m", "deepfloyd-if-license", "lgpl-lr"),
)
_NO_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "apple-ascl")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_PERMISSIVE, "permissive"),
    **dict.fromkeys(_COPYLEFT, "copyleft"),
    **dict.fromkeys(_NON_COMMERCIAL, "non-commercial"),
    **dict.fromkeys(_OWN_TERMS, "own terms"),
    **dict.fromkeys(_NO_DERIVATIVES, "no derivatives"),
}
# Two terms that one text reconciles: the licence that a work under both carries.
_COMPATIBLE = {
    frozenset({"gpl-3.0", "agpl-3.0"}): "agpl-3.0",
    frozenset({"lgpl-3.0", "gpl-3.0"}): "gpl-3.0",
    frozenset({"lgpl-3.0", "agpl-3.0"}): "agpl-3.0",
    frozenset({"mpl-2.0", "gpl-3.0"}): "gpl-3.0",
    frozenset({"mpl-2.0", "agpl-3.0"}): "agpl-3.0",
    frozenset({"cc-by-sa-4.0", "gpl-3.0"}): "gpl-3.0",
    frozenset({"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}): "cc-by-nc-sa-4.0",
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_LLAMA = re.compile(r"llama([34](\.\d)?)")
_FILES = re.compile(r"(licen[cs]e|copying)([._-].*)?", re.IGNORECASE)


class Licence(NamedTuple):
    """What a model folder says.

    Args:
        id: The Hub's identifier, lower case; None where the card names none.
        name: Of an ``other`` one.
        link: To the text of an ``other`` one.
        file: A licence file beside the weights.
    """

    id: str | None = None
    name: str | None = None
    link: str | None = None
    file: str | None = None

    @property
    def terms(self) -> str | None:
        """What tells one set of terms from another; None where nothing is known."""
        if self.id == "other":
            return f"other: {self.name}" if self.name else None
        return None if self.id in (None, "unknown") else self.id

    @property
    def kind(self) -> Kind | None:
        """What it asks of a merge; ``own terms`` for one that is not in the table."""
        return None if self.terms is None else _KINDS.get(self.terms, "own terms")


@dataclass(frozen=True)
class Verdict:
    """The licence of a merge.

    Args:
        id: For its card.
        name: Of an ``other`` one.
        conflicts: Why it may not be allowed at all, one line each.
        unknown: Models that say nothing.
        duties: What publishing it asks for, one line each.
    """

    id: str
    name: str | None
    conflicts: tuple[str, ...]
    unknown: tuple[str, ...]
    duties: tuple[str, ...]


def read_card(folder: Path) -> dict[str, Any]:
    """The metadata of a model folder's card, ``{}`` where there is none that can be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8-sig")
        head = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        found = yaml.safe_load(head[1]) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def read_licence(folder: Path) -> Licence:
    """The licence that a model folder's card and files name."""
    card = read_card(folder)
    stated = card.get("license")
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    if isinstance(stated, list) and stated:
        stated, card = "other", {**card, "license_name": " and ".join(map(str, stated))}
    elif isinstance(stated, str) and stated.strip() and not _ID.fullmatch(stated.strip()):
        stated, card = "other", {**card, "license_name": stated}
    files = sorted(path.name for path in folder.glob("*") if _FILES.fullmatch(path.name))
    return Licence(
        stated.strip().lower() or None if isinstance(stated, str) else None,
        _text(card.get("license_name")),
        _text(card.get("license_link")),
        files[0] if files else None,
    )


def base_models(card: Mapping[str, Any]) -> tuple[str, ...]:
    """What a card names as ``base_model``."""
    stated = card.get("base_model")
    listed = stated if isinstance(stated, list) else [stated]
    return tuple(name for name in listed if isinstance(name, str))


def merged_licence(licences: Mapping[str, Licence]) -> Verdict:
    """The licence that a merge of these models carries, and what speaks against it.

    Permissive terms give way to the one licence that is not; two such licences are a conflict,
    but for the few pairs that their own texts reconcile. Without a conflict every term is met.

    Args:
        licences: Of base and experts, by name.
    """
    unknown = tuple(name for name, licence in licences.items() if licence.kind is None)
    strict: dict[str, list[str]] = {}  # terms that bind the merge → who brings them
    free: dict[str, list[str]] = {}
    conflicts = []
    for name, licence in licences.items():
        terms = licence.terms
        if terms is None:
            continue
        (free if licence.kind == "permissive" else strict).setdefault(terms, []).append(name)
        if licence.kind == "no derivatives":
            conflicts.append(f"{terms} ({name}) allows no derived works")
    if "gpl-2.0" in strict and "apache-2.0" in free:
        conflicts.append(f"gpl-2.0 ({_who(strict['gpl-2.0'])}) does not go with apache-2.0")
    chosen = _of_strict(strict, conflicts) if strict else _of_free(free)
    if chosen is None:
        parts = sorted({*strict, *free})
        name = " and ".join(part.removeprefix("other: ") for part in parts) or "unknown"
        return Verdict("other", name, tuple(conflicts), unknown, _duties(strict, free))
    if chosen.startswith("other: "):
        name = chosen.removeprefix("other: ")
        return Verdict("other", name, tuple(conflicts), unknown, _duties(strict, free))
    return Verdict(chosen, None, tuple(conflicts), unknown, _duties(strict, free))


def _of_strict(strict: Mapping[str, list[str]], conflicts: list[str]) -> str | None:
    terms = list(strict)
    if len(terms) == 1:
        return terms[0]
    if len(terms) == 2 and frozenset(terms) in _COMPATIBLE:
        return _COMPATIBLE[frozenset(terms)]
    said = "; ".join(f"{one} of {_who(who)}" for one, who in strict.items())
    conflicts.append(f"asks for different terms at once: {said}")
    return None


def _of_free(free: Mapping[str, list[str]]) -> str | None:
    """Of several permissive licences the one that asks for most, Apache's before others."""
    if not free:
        return None
    order = {name: rank for rank, name in enumerate(("apache-2.0", "cc-by-4.0", "bsd-3-clause"))}
    return min(free, key=lambda one: (order.get(one, len(order)), one))


def _duties(strict: Mapping[str, list[str]], free: Mapping[str, list[str]]) -> tuple[str, ...]:
    duties = []
    for terms in strict:
        if match := _LLAMA.fullmatch(terms):
            built = "Built with Meta Llama 3" if match[1] == "3" else "Built with Llama"
            duties.append(f'{terms}: the name must begin with "Llama"; the card says "{built}"')
        if _KINDS.get(terms, "own terms") == "own terms":
            duties.append(f"{terms}: pass its terms on with the weights")
        elif _KINDS[terms] == "non-commercial":
            duties.append(f"{terms}: no commercial use")
    if len(free) + len(strict) > 1:
        duties.append("keep the notices of " + ", ".join(sorted({*free, *strict})))
    return tuple(duties)


def _who(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _text(value: object) -> str | None:
    return " ".join(value.split())[:200] or None if isinstance(value, str) else None
