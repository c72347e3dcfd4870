"""The root file system that machines start from: where it is, and whether it can be used."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from cqd_hub.errors import UserError
from cqd_hub.files import cache_folder

from ._ids import Ids, ids_here

FORMAT = 1
DEFAULT_NAME = "debian"
LABEL = "cqd-hub.packages"  # of a Docker image
STAMP, ROOT = "stamp.json", "root"
# No sudo: tasks have it installed. Everything else is what tasks were seen to use.
PACKAGES = (
    "bc", "ca-certificates", "cron", "curl", "file", "gawk", "gcc", "git", "iproute2", "libc6-dev",
    "procps", "python3", "tree", "unzip", "vim-tiny", "wget", "zip",
)  # fmt: skip
# In a repository inside the machine, so that `apt install` works there without a network.
OFFERED = ("jq", "nano", "sudo")
_PACKAGE = re.compile(r"^(?:Package|Version|Architecture): .*$", re.MULTILINE)
_BUILD = "cqd-hub sandbox build"


@dataclass(frozen=True)
class Image:
    """A root file system on this machine.

    Attributes:
        folder: Of the stamp and the file system.
        packages: Hash of what it was made of, `wanted` for one of this version.
        made: What it was made from, for people.
        ids: Who owns its files outside.
    """

    folder: Path
    format: int
    packages: str
    made: str
    ids: Ids

    @property
    def root(self) -> Path:
        return self.folder / ROOT

    @property
    def digest(self) -> str:
        """Of the packages in it with their versions; of what it was made from if it names none."""
        try:
            status = (self.root / "var/lib/dpkg/status").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            status = ""
        entries = ["\n".join(_PACKAGE.findall(entry)) for entry in status.split("\n\n")]
        facts = sorted(entry for entry in entries if entry) or [self.made]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def wanted() -> str:
    """Hash of the lists of packages."""
    return hashlib.sha256(json.dumps([PACKAGES, OFFERED]).encode()).hexdigest()[:16]


def images_folder() -> Path:
    return cache_folder() / "machines"


def image_folder(name: str | Path | None) -> Path:
    """The folder of an image: named in the cache, or anywhere."""
    text = str(name or DEFAULT_NAME)
    return Path(text).expanduser() if os.sep in text else images_folder() / text


def write_stamp(folder: Path, made: str, ids: Ids) -> None:
    image = Image(folder, FORMAT, wanted(), made, ids)
    content = asdict(image)
    del content["folder"]
    (folder / STAMP).write_text(json.dumps(content, indent=1) + "\n")


def read_image(folder: Path) -> Image:
    """Read what was built, whether or not it can be used.

    Raises:
        UserError: There is none.
    """
    try:
        content = json.loads((folder / STAMP).read_text())
        ids = Ids(**{name: int(number) for name, number in content["ids"].items()})
        return Image(
            folder, int(content["format"]), str(content["packages"]), str(content["made"]), ids
        )
    except FileNotFoundError:
        raise UserError(
            "there is no root file system for machines", where=str(folder), remedy=_command(folder)
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"the stamp cannot be read: {type(error).__name__}",
            where=str(folder / STAMP),
            remedy=f"{_command(folder)} --force",
        ) from None


def find_image(name: str | Path | None = None) -> Image:
    """The image to start machines from.

    Raises:
        UserError: Missing, of another version, or owned by ids that this user has not.
    """
    image = read_image(image_folder(name))
    again = f"{_command(image.folder)} --force"
    if image.format != FORMAT or image.packages != wanted():
        raise UserError(
            "the root file system is of another version", where=str(image.folder), remedy=again
        )
    ids = ids_here().ids
    if image.ids != ids:
        raise UserError(
            f"the root file system belongs to the user ids from {image.ids.uid} on, and this user "
            f"has those from {ids.uid} on ({ids.count})",
            where=str(image.folder),
            remedy=again,
        )
    return image


def images() -> list[Image]:
    """All in the cache, usable or not."""
    found = []
    for stamp in sorted(images_folder().glob(f"*/{STAMP}")):
        if not stamp.parent.name.startswith("."):
            found.append(read_image(stamp.parent))
    return found


def _command(folder: Path) -> str:
    if folder == image_folder(None):
        return _BUILD
    name = folder.name if folder.parent == images_folder() else folder
    return f"{_BUILD} --to {name}"
