"""Publishing a run: elites, archive, collection. What is on the Hub is all the state there is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.files import cache_folder
from cqd_hub.hub.client import Hub, HubAway
from cqd_hub.hub.commit import Change, Committed, Head, Kind, commit, same, size_of
from cqd_hub.publish import owner
from cqd_hub.publish.archive import (
    Archive,
    draw,
    factor_files,
    layout_record_of,
    merge_files,
    read_record,
)
from cqd_hub.publish.building import Workshop
from cqd_hub.publish.choice import Form, adapter_bytes, choose, model_bytes, usual_form
from cqd_hub.publish.collection import Item, differing, find_collection, update_collection
from cqd_hub.publish.elites import Elite
from cqd_hub.publish.models import Models, check_licences, models_of
from cqd_hub.publish.view import View, open_view


@dataclass(frozen=True)
class PushOptions:
    """What to publish, and how.

    Args:
        elites: See `cqd_hub.publish.choice.ASKED`; None for what a finished run is best at.
        form: Of the elites; the smaller exact one unless given.
        base: The base's repository, where the run had it as a local folder.
        with_basis: Publish the basis whatever its size.
        with_merges: Publish the merges that the run keeps on disk.
        public: Let everybody see it.
        accept_licence: Publish in spite of licences that conflict and gated parents.
    """

    elites: Sequence[str] | None = None
    form: Form | None = None
    base: str | None = None
    with_basis: bool = False
    with_merges: bool = False
    public: bool = False
    accept_licence: bool = False


@dataclass(frozen=True)
class Part:
    """One repository of a push.

    Args:
        repo: ``ns/name``.
        kind: Model or data set.
        commit: The head that holds everything; None in a dry run.
        changed: Whether a commit was, or would be, needed.
        files: How many files it changes.
        bytes: Their size; of weights that are not built yet an estimate.
    """

    repo: str
    kind: Kind
    commit: str | None
    changed: bool
    files: int
    bytes: int


@dataclass
class Pushed:
    """What a push did, or in a dry run would do.

    Args:
        archive: The archive's repository.
        elites: By first label.
        collection: Its slug; None before there is one.
        collected: Whether the collection was, or would be, changed.
    """

    archive: Part | None = None
    elites: dict[str, Part] = field(default_factory=dict)
    collection: str | None = None
    collected: bool = False


def push(
    folder: Path,
    to: str,
    *,
    options: PushOptions | None = None,
    dry_run: bool = False,
    wait: bool = True,
    note: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Publish a run directory, finished or not; again, only what is new.

    Args:
        folder: The run directory; another process may be writing it.
        to: ``ns/name`` of the archive; elites are ``ns/name-<label>``.
        options: What.
        dry_run: Ask, build tables and say what would be done; write nothing on the Hub.
        wait: For another push of this directory, instead of refusing.
        note: Called with a line for everything worth knowing.

    Raises:
        UserError: Names, rights, licences, or something else is published there: nothing was
            written.
        HubAway: The Hub stays away; the same call completes the push.
    """
    hub = Hub(note=note)
    with open_view(folder) as view, _alone(folder, wait=wait, note=note) as scratch:
        return _Push(hub, view, to, options or PushOptions(), scratch, note).go(dry_run=dry_run)


def check_target(
    to: str, *, patience: float | None = None, note: Callable[[str], None] = lambda line: None
) -> None:
    """Ask for name and rights, before a run that is to be published begins.

    Raises:
        UserError: The name is illegal, or this token may not write there.
        HubAway: Nobody answers.
    """
    owner.check_name(to)
    hub = Hub(note=note, patience=patience)
    owner.check_owner(hub, to.partition("/")[0])
    owner.find(hub, to, "dataset")


class _Push:
    def __init__(
        self,
        hub: Hub,
        view: View,
        to: str,
        options: PushOptions,
        scratch: Path,
        note: Callable[[str], None],
    ) -> None:
        self._hub, self._view, self._to = hub, view, to
        self._options, self._scratch, self._note = options, scratch, note
        self._mark = f"cqd-hub {view.run}"

    def go(self, *, dry_run: bool) -> Pushed:
        options, view = self._options, self._view
        owner.check_name(self._to)
        chosen = choose(view, options.elites)
        for one in chosen:
            owner.check_name(one.repo(self._to))
        models = models_of(view.manifest)
        for line in check_licences(models, accepted=options.accept_licence):
            self._note(line)
        owner.check_owner(self._hub, self._to.partition("/")[0])
        heads = {self._to: owner.find(self._hub, self._to, "dataset")}
        models = self._with_base(models, heads[self._to])
        self._shop = Workshop(view, models, self._scratch / "elites", self._note)
        layout = layout_record_of(view.folder, lambda: self._shop.basis)
        elites = [
            Elite(
                one.repo(self._to),
                self._to,
                view,
                models,
                one,
                self._form(models, layout),
                self._shop.build,
            )
            for one in chosen
        ]
        archive = Archive(
            repo=self._to,
            view=view,
            models=models,
            layout=layout,
            basis=factor_files(
                layout,
                cache_folder() / "basis",
                asked=options.with_basis,
                opened=lambda: self._shop.basis,
            ),
            merges=merge_files(view) if options.with_merges else {},
            published={label: one.repo for one in elites for label in one.chosen.labels},
            scratch=self._scratch / "tables",
            figures=draw(view),
        )
        heads |= {one.repo: owner.find(self._hub, one.repo, "model") for one in elites}
        # What is already there must be ours before anything is written.
        change = self._hub.ask(self._to, lambda: archive.change(heads[self._to]))
        there = {
            one.repo: self._hub.ask(one.repo, lambda one=one: one.published(heads[one.repo]))  # type: ignore[misc]
            for one in elites
        }
        items = [Item(self._to, "dataset", f"the archive of {view.recipe.name}")]
        items += [Item(one.repo, "model", one.note) for one in elites]
        if dry_run:
            return self._planned(archive, change, elites, heads, there, layout, items)
        return self._write(archive, elites, heads, items)

    def _write(
        self,
        archive: Archive,
        elites: list[Elite],
        heads: dict[str, Head | None],
        items: list[Item],
    ) -> Pushed:
        done, failed = Pushed(), None
        for one in elites:
            try:
                made = self._publish(one.repo, "model", one.change, heads[one.repo])
                done.elites[one.chosen.labels[0]] = made
            except HubAway:
                raise
            except CqdHubError as error:  # what else there is to publish is published
                failed = failed or error
        reached = {part.repo for part in done.elites.values()}
        labels = {label: repo for label, repo in archive.published.items() if repo in reached}
        archive = archive.with_published(labels)
        done.archive = self._publish(self._to, "dataset", archive.change, heads[self._to])
        if elites or find_collection(self._hub, self._to):
            items = [item for item in items if item.repo in {self._to, *reached}]
            done.collection, done.collected = update_collection(
                self._hub, self._to, items, public=self._options.public
            )
        if failed:
            raise failed
        shutil.rmtree(self._scratch / "elites", ignore_errors=True)
        return done

    def _publish(
        self,
        repo: str,
        kind: Kind,
        change: Callable[[Head | None], Change | None],
        head: Head | None,
    ) -> Part:
        if head is None:
            owner.ensure(self._hub, repo, kind)
        made: Committed = commit(self._hub, repo, kind, change, mark=self._mark)
        if made.made:
            self._note(f"{repo}: {made.files} files, {_size(made.bytes)}")
        if self._options.public:
            owner.make_public(self._hub, repo, kind)
        return Part(repo, kind, made.sha, made.made, made.files, made.bytes)

    def _planned(
        self,
        archive: Archive,
        change: Change | None,
        elites: list[Elite],
        heads: dict[str, Head | None],
        there: dict[str, Any],
        layout: dict[str, Any],
        items: list[Item],
    ) -> Pushed:
        files = _missing(change, heads[self._to])
        result = Pushed(Part(self._to, "dataset", None, bool(files), len(files), sum(files)))
        for one in elites:
            size = adapter_bytes(layout) if one.form == "adapter" else model_bytes(layout)
            fresh = there[one.repo] is None
            if not fresh:
                rest = self._hub.ask(one.repo, lambda one=one: one.change(heads[one.repo]))  # type: ignore[misc]
                files = _missing(rest, heads[one.repo])
            part = Part(
                one.repo,
                "model",
                None,
                fresh or bool(files),
                0 if fresh else len(files),
                size if fresh else sum(files),
            )
            result.elites[one.chosen.labels[0]] = part
        found = find_collection(self._hub, self._to)
        result.collection = found.slug if found else None
        result.collected = bool(elites or found) and bool(differing(found, items))
        return result

    def _form(self, models: Models, layout: dict[str, Any]) -> Form:
        base = models.base.reference
        if self._options.form == "adapter" and base is None:
            raise UserError(
                "an adapter needs a base on the Hub, and the run's is a local folder",
                where="--form adapter",
                remedy="name its repository with --base ns/name, or use --form checkpoint",
            )
        return self._options.form or usual_form(self._view, layout, base=base)

    def _with_base(self, models: Models, head: Head | None) -> Models:
        """The models with the base's repository as given, or as given to an earlier push.

        Raises:
            UserError: It does not hold this very base.
        """
        repo = self._options.base
        if repo is None:
            if models.base.reference is not None or head is None:
                return models
            record = self._hub.ask(self._to, lambda: read_record(head, self._view.run))
            known = (record or {}).get("models", {}).get("base", {}).get("reference")
            return models._replace(base=models.base._replace(reference=known))
        owner.check_name(repo)
        there = owner.read(self._hub, repo, "model")
        digest = hashlib.sha256()
        for path in sorted(there.files):
            if re.fullmatch(r"model[^/]*\.safetensors", path):
                digest.update((there.files[path].sha256 or "").encode())
        if digest.hexdigest() != models.base.sha256:
            raise UserError(
                "does not hold the weights of the run's base", where=repo, remedy="check --base"
            )
        return models._replace(base=models.base._replace(reference=f"{repo}@{there.sha}"))


@contextmanager
def _alone(folder: Path, *, wait: bool, note: Callable[[str], None]) -> Iterator[Path]:
    """A folder for what is built, held by one push of this directory at a time."""
    place = folder / ".push"
    try:
        place.mkdir(exist_ok=True)
        descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # a directory that may only be read
        with tempfile.TemporaryDirectory() as other:
            yield Path(other)
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise RunError(
                    "another process is publishing it", where=str(folder), remedy="wait for it"
                ) from None
            note("waiting for another push of this run")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield place
    finally:
        shutil.rmtree(place / "tables", ignore_errors=True)
        os.close(descriptor)


def _missing(change: Change | None, head: Head | None) -> list[int]:
    """The sizes of what a change would send."""
    if change is None:
        return []
    there = {} if head is None else head.files
    return [
        size_of(content)
        for path, content in change.files.items()
        if content is not None and not (path in there and same(content, there[path]))
    ]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
