"""Folders that look like a model but for its data: headers by range requests, the rest a hole.

What opens and checks models can so be asked about one of many gigabytes before any is downloaded.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from cqd_hub.errors import UserError
from cqd_hub.files import cache_folder
from cqd_hub.hub.client import Hub
from cqd_hub.hub.listing import Listing

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@contextmanager
def workspace() -> Iterator[Path]:
    """An empty folder that is gone after the block, or with the next call if this one is killed."""
    home = cache_folder() / "hub"
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _held(home):  # one process at a time clears away and begins
            for left in home.glob("headers-*"):
                with suppress(OSError), _held(left, wait=False):
                    shutil.rmtree(left)
            folder = Path(tempfile.mkdtemp(prefix="headers-", dir=home))
            stack.enter_context(_held(folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def _held(folder: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def stand_in(
    hub: Hub, listing: Listing, place: Path, *, whole: Iterable[str], weights: Iterable[str]
) -> Path:
    """Make a folder with the files that are *whole* in the cache, and *weights* without data.

    Pickles that the repository holds are there by name alone.

    Raises:
        UserError: Weights whose header cannot be read.
    """
    # Named as in the client's cache, which is what adapters look for when they name their base.
    folder = place / f"models--{listing.repo.replace('/', '--')}" / listing.sha
    folder.mkdir(parents=True)
    for name in whole:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to((listing.folder / name).absolute())
    for name in weights:
        _write_header(hub, listing, name, folder / name)
    for name in listing.files:
        if name.endswith(PICKLED) and "/" not in name:
            (folder / name).touch()
    return folder


def _write_header(hub: Hub, listing: Listing, name: str, path: Path) -> None:
    where = f"{listing.reference}/{name}"

    def read() -> Any:
        return hub.api.parse_safetensors_file_metadata(listing.repo, name, revision=listing.sha)

    try:
        if listing.files[name].size < 8:
            raise ValueError("it is too short")
        found = hub.ask(where, read)
        header: dict[str, Any] = {
            tensor: {"dtype": t.dtype, "shape": t.shape, "data_offsets": t.data_offsets}
            for tensor, t in found.tensors.items()
        }
        end = max((int(t.data_offsets[1]) for t in found.tensors.values()), default=0)
        if not 0 <= end <= listing.files[name].size:
            raise ValueError("its header tells of data beyond its end")
    except (SafetensorsParsingError, NotASafetensorsRepoError, ValueError, TypeError) as error:
        raise UserError(
            f"is damaged or no safetensors file: {str(error).splitlines()[0][:200]}",
            where=where,
            remedy="tell its authors",
        ) from None
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
