"""Models from the Hub: pinned to a commit, checked by their headers, downloaded, verified.

They land in the client's own cache (``HF_HOME``), where other tools find them too. Of a repository
only what a merge needs is taken: safetensors, configs, tokenizer, card and licence; no pickles, no
code.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import tqdm

from cqd_hub import __version__
from cqd_hub.errors import RunError, UserError
from cqd_hub.hub.client import LIBRARY, Hub
from cqd_hub.hub.headers import stand_in, workspace
from cqd_hub.hub.licences import Licence, base_models, read_card, read_licence
from cqd_hub.hub.listing import Listing, cached, list_files, remember_revision
from cqd_hub.hub.reference import Reference

_SMALL = re.compile(
    r"(adapter_)?config\.json|(generation|preprocessor|processor)_config\.json"
    r"|(model|adapter_model)\.safetensors\.index\.json"
    r"|tokenizer.*\.json|vocab\.(json|txt|bpe)|merges\.txt|[\w.-]+\.(model|tiktoken)"
    r"|(special_tokens_map|added_tokens)\.json|chat_template\.(jinja|json)"
    r"|additional_chat_templates/[\w-]+\.jinja"
    r"|README\.md|(?i:licen[cs]e|notice|copying|use_policy)([._-].*)?"
)
_TELL_EVERY = 15.0  # seconds between two notes on one download


@dataclass(frozen=True)
class Fetched:
    """A model in the cache, every file verified.

    Args:
        path: Its folder.
        reference: ``ns/name@sha``.
        sha: The commit.
        licence: As its card has it.
        gated: Whether access had to be asked for; None if only the cache was looked at.
        base_model: What its card names as such.
    """

    path: Path
    reference: str
    sha: str
    licence: Licence
    gated: bool | None
    base_model: tuple[str, ...]


def fetch(
    hub: Hub,
    references: Sequence[Reference],
    *,
    check: Callable[[Sequence[Path]], None] = lambda folders: None,
) -> list[Fetched]:
    """Fetch models; what was fetched before and is pinned takes no request.

    Args:
        references: Models; a revision that is no commit is resolved now.
        check: Called before any weights are downloaded, if some have to be, with one folder per
            reference. Those of models that are not here yet hold weights without data.

    Raises:
        UserError: Missing, private, gated, no such revision, wrong token; not enough disk; or what
            *check* raises.
        RunError: A file has not the hash that the Hub gives for it, twice.
        HubAway: The Hub does not answer; the same call goes on from what is there.
    """
    repositories = _open(hub, references)
    if any(one.missing or not one.weights for one in repositories.values()):
        with _folders(repositories) as folders:
            check([folders[reference] for reference in references])
        _check_room(list(repositories.values()))
    for reference, one in repositories.items():
        one.get_weights()
        if not constants.is_offline_mode():
            remember_revision(reference, one.listing)
    return [repositories[reference].fetched() for reference in references]


@contextmanager
def look(hub: Hub, references: Sequence[Reference]) -> Iterator[list[Path]]:
    """Folders as `fetch` shows them to its *check*, for the block; no weights are downloaded."""
    repositories = _open(hub, references)
    with _folders(repositories) as folders:
        yield [folders[reference] for reference in references]


class _Repository:
    """One model at one commit."""

    def __init__(self, hub: Hub, reference: Reference) -> None:
        if reference.kind != "model":
            raise UserError("is no model", where=str(reference), remedy="name a model: ns/name")
        self._hub = hub
        self.listing = list_files(hub, reference)
        self._small = sorted(name for name in self.listing.files if _SMALL.fullmatch(name))
        _sweep(self.listing.repo)
        for name in self._small:
            self._get(name)
        self.weights = _weights(self.listing)
        self.missing = [name for name in self.weights if not self.listing.is_whole(name)]

    @property
    def missing_bytes(self) -> int:
        return sum(self.listing.files[name].size for name in self.missing)

    def folder(self, workspace: Path) -> Path:
        """Of all its files, or of its headers where weights are missing."""
        if not self.missing and self.weights:
            return self.listing.folder
        whole = [*self._small, *(name for name in self.weights if name not in self.missing)]
        return stand_in(self._hub, self.listing, workspace, whole=whole, weights=self.missing)

    def get_weights(self) -> None:
        if self.missing:
            self._hub.note(f"{self.listing.repo}: downloading {_size(self.missing_bytes)}")
        for name in self.missing:
            self._get(name)

    def fetched(self) -> Fetched:
        listing = self.listing
        return Fetched(
            path=listing.folder,
            reference=listing.reference,
            sha=listing.sha,
            licence=read_licence(listing.folder),
            gated=listing.gated,
            base_model=base_models(read_card(listing.folder)),
        )

    def _get(self, name: str) -> None:
        """Have one file in the cache with the right content; a wrong one is fetched again, once."""
        for again in (False, True):
            if self.listing.is_whole(name):
                return
            path = self.listing.folder / name
            if again or path.exists():
                self._hub.note(f"{self.listing.repo}: {name} is damaged; downloading it again")
            _discard(path)
            self._download(name, again=again)
        if self.listing.is_whole(name):
            return
        _discard(self.listing.folder / name)
        raise RunError(
            "does not have the hash that the Hub gives for it, downloaded twice",
            where=f"{self.listing.reference}/{name}",
            remedy="run the same command again later; if it stays so, tell its authors",
        )

    def _download(self, name: str, *, again: bool) -> None:
        listing = self.listing

        def download() -> str:
            try:
                return hf_hub_download(
                    listing.repo,
                    name,
                    revision=listing.sha,
                    force_download=again,  # else a blob of another commit may serve
                    endpoint=self._hub.endpoint,
                    token=self._hub.api.token,
                    library_name=LIBRARY,
                    library_version=__version__,
                    tqdm_class=_progress(self._hub.note, f"{listing.repo}/{name}"),
                )
            except OSError as error:
                if "Consistency check failed" in str(error):  # fewer bytes came than were promised
                    raise ConnectionError(str(error)) from None
                raise

        try:
            self._hub.ask(listing.reference, download)
        except OSError as error:
            raise RunError(
                f"cannot be written: {error.strerror or error}",
                where=str(cached(listing.repo)),
                remedy="free some space, or set HF_HOME to a folder on another disk",
            ) from None
        finally:
            _sweep(listing.repo)


def _open(hub: Hub, references: Sequence[Reference]) -> dict[Reference, _Repository]:
    return {reference: _Repository(hub, reference) for reference in dict.fromkeys(references)}


@contextmanager
def _folders(repositories: dict[Reference, _Repository]) -> Iterator[dict[Reference, Path]]:
    with workspace() as place:
        yield {
            reference: one.folder(place / str(number))
            for number, (reference, one) in enumerate(repositories.items())
        }


def _weights(listing: Listing) -> list[str]:
    """Names of the safetensors files that make the model or the adapter."""
    stems = ["adapter_model"] if "adapter_config.json" in listing.files else []
    if not stems or "model.safetensors" in listing.files:  # both are refused by who opens it
        stems.append("model")
    return [name for stem in stems for name in _of_stem(stem, listing)]


def _of_stem(stem: str, listing: Listing) -> list[str]:
    index = f"{stem}.safetensors.index.json"
    if index in listing.files:
        try:
            value = json.loads((listing.folder / index).read_text(encoding="utf-8"))
            named = set(value["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(
                "names no shards", where=f"{listing.reference}/{index}", remedy="tell its authors"
            ) from None
        return sorted(name for name in named if name in listing.files and "/" not in name)
    single = f"{stem}.safetensors"
    return [single] if single in listing.files else []


def _check_room(repositories: Sequence[_Repository]) -> None:
    needed = sum(one.missing_bytes for one in repositories)
    place = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"the models need {_size(needed)} more, {_size(free)} are free",
            where=str(place),
            remedy="free some space, or set HF_HOME to a folder on another disk",
        )


def _discard(path: Path) -> None:
    """Remove a file of the cache and what it links to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _sweep(repo: str) -> None:
    """Remove what killed downloads left; the client itself never does.

    A download that is going on holds the client's lock of its file.
    """
    for left in (cached(repo) / "blobs").glob("*.incomplete"):
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / cached(repo).name
        with suppress(OSError), (lock / f"{left.name.partition('.')[0]}.lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _progress(note: Callable[[str], None], what: str) -> type[tqdm]:
    """The client's progress bar, told as a line now and then."""

    class Told(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})
            self._bytes, self._all = options.get("initial") or 0, options.get("total") or 0
            self._told = time.monotonic()

        def update(self, n: float | None = 1) -> bool | None:
            self._bytes += int(n or 0)
            if time.monotonic() - self._told > _TELL_EVERY:
                self._told = time.monotonic()
                note(f"{what}: {_size(self._bytes)} of {_size(self._all)}")
            return None

    return Told


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
