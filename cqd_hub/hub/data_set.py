"""Files of a data set on the Hub, at one commit, checked against the hashes that the Hub names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import write_atomic
from cqd_hub.hub.client import Hub
from cqd_hub.hub.listing import File
from cqd_hub.hub.reference import Reference


def fetch_data_set(hub: Hub, reference: Reference, wanted: Callable[[str], bool]) -> Path:
    """Have the wanted files of a data set in the client's cache.

    Args:
        reference: Of kind ``dataset``; what it resolves to is told through `Hub.note` unless it
            is a commit already.
        wanted: Whether a path of the data set is needed.

    Returns:
        The folder of that commit, named by its sha. It holds what was fetched of it, now or
        before.

    Raises:
        UserError: Missing, private, no such revision, nothing wanted in it; offline and not in
            the cache.
        RunError: A file has not the hash that the Hub gives for it, twice.
        HubAway: The Hub does not answer.
    """
    if constants.is_offline_mode():
        return _offline(hub, reference)
    info = hub.ask(
        str(reference),
        lambda: hub.api.dataset_info(
            reference.repo, revision=reference.revision, files_metadata=True
        ),
    )
    if info.sha != reference.revision:
        hub.note(f"{reference}: at commit {info.sha}")
    files = {
        entry.rfilename: File(entry.size or 0, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in info.siblings or []
        if entry.blob_id is not None and wanted(entry.rfilename)
    }
    if not files:
        raise UserError(
            "holds none of the files that are looked for",
            where=str(reference),
            remedy="check the data set and what follows the @",
        )
    pinned = reference._replace(revision=info.sha)
    for name, file in files.items():
        place = _get(hub, pinned, name, file)
    folder = Path(*place.parts[: len(place.parts) - len(Path(name).parts)])
    if info.sha != reference.revision:  # what the client does itself when it is asked by name
        with suppress(RunError):  # a courtesy: the cache may be for reading only
            write_atomic(folder.parents[1] / "refs" / (reference.revision or "main"), str(info.sha))
    return folder


def _get(hub: Hub, pinned: Reference, name: str, file: File) -> Path:
    where = f"{pinned}/{name}"
    for again in (False, True):
        download = partial(
            hub.api.hf_hub_download,
            pinned.repo,
            name,
            repo_type="dataset",
            revision=pinned.revision,
            force_download=again,
        )
        place = Path(hub.ask(where, download))
        if file.matches(place):
            return place
        hub.note(f"{where}: is damaged")
    place.unlink(missing_ok=True)
    raise RunError(
        "does not have the hash that the Hub gives for it, downloaded twice",
        where=where,
        remedy="run the same command again later; if it stays so, tell its authors",
    )


def _offline(hub: Hub, reference: Reference) -> Path:
    try:
        folder = snapshot_download(
            reference.repo,
            repo_type="dataset",
            revision=reference.revision,
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        raise UserError(
            "is not in the cache, and HF_HUB_OFFLINE is set",
            where=str(reference),
            remedy="unset HF_HUB_OFFLINE, once, to download it",
        ) from None
    hub.note(f"{reference}: offline, taken as it is in the cache, at commit {Path(folder).name}")
    return Path(folder)
