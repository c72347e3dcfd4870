"""Root file systems: built whole or not at all, of the right version, owned by the right ids."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.evaluation.machines import Image, build_image, find_image, images, open_machines
from cqd_hub.evaluation.machines import _ids as ids
from cqd_hub.evaluation.machines._bubblewrap import BubblewrapMachines
from cqd_hub.evaluation.machines._build import pack


def tar_of(path: Path, names: dict[str, int]) -> Path:
    """A root file system of empty files, each of an owner."""
    with tarfile.open(path, "w") as tar:
        for name, owner in names.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.uid, entry.gid = 0o755, owner, owner
            if name.endswith("/"):
                entry.type = tarfile.DIRTYPE
            tar.addfile(entry, io.BytesIO())
    return path


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    names = {"./usr/bin/python3": 0, "./bin/bash": 0, "./root/": 0, "./root/of-ann": 1000}
    return tar_of(tmp_path / "root.tar", names)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CQD_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "machines"


def built(*arguments: str, **options: object) -> None:
    """Build, or skip where no namespace can be made."""
    try:
        build_image(*arguments, **options)  # type: ignore[arg-type]
    except RunError as error:
        if "cannot be put together" in str(error):
            pytest.skip(str(error))
        raise


def test_from_a_tar(cache: Path, tar: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    built(tar=tar, note=lines.append)
    image = find_image()
    assert image.folder == cache / "debian"
    assert [found.folder for found in images()] == [image.folder]
    assert "ready in" in lines[-1]
    if image.ids.count > 1:
        assert (image.root / "root/of-ann").stat().st_uid == image.ids.uid + 1000
        with (tmp_path / "packed.tar").open("wb") as file:
            pack(image, file)
        with tarfile.open(tmp_path / "packed.tar") as packed:
            assert packed.getmember("./root/of-ann").uid == 1000
    with pytest.raises(UserError, match="--force builds it again"):
        build_image(tar=tar)
    (image.root / "root").chmod(0o700)
    built(tar=tar, force=True)
    assert sorted(path.name for path in cache.iterdir()) == ["debian"]


def test_other_versions_of_packages_are_another_kind_of_machine(tmp_path: Path) -> None:
    image = Image(tmp_path, 1, "", "Debian", ids.Ids(0, 0, 1))
    unnamed = image.digest
    status = image.root / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    entries = [f"Package: {name}\nStatus: ok\nVersion: 1\n" for name in ("bash", "gawk")]
    status.write_text("\n".join(entries))
    first = image.digest
    assert BubblewrapMachines(image).kind == f"bubblewrap-{first}"
    status.write_text("\n".join(reversed(entries)).replace("Status: ok", "Status: held"))
    assert image.digest == first
    status.write_text("\n".join(entries).replace("Version: 1", "Version: 2", 1))
    assert len({unnamed, first, image.digest}) == 3


def test_a_build_that_fails_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.tar"
    garbage.write_bytes(b"no tar at all" * 1000)
    with pytest.raises(RunError, match="tar: "):
        build_image(tar=garbage)
    with pytest.raises(UserError, match="no usr/bin/python3"):
        build_image(tar=tar_of(tmp_path / "small.tar", {"./etc/": 0}))
    with pytest.raises(UserError, match="no such file"):
        build_image(tar=tmp_path / "none.tar")
    assert list(cache.iterdir()) == []


def test_a_failing_build_leaves_what_was_there(cache: Path, tar: Path, tmp_path: Path) -> None:
    built(tar=tar)
    with pytest.raises(CqdHubError):
        build_image(tar=tar_of(tmp_path / "small.tar", {"./etc/": 0}), force=True)
    assert find_image().made == "from root.tar"


def test_builders(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(UserError, match=r"neither mmdebstrap nor debootstrap.*--tar"):
        build_image()
    script = programs / "mmdebstrap"
    script.write_text("#!/bin/sh\necho I: trying >&2; echo E: no such suite: $* >&2; exit 25\n")
    script.chmod(0o755)
    if os.geteuid() == 0:
        with pytest.raises(RunError, match="mmdebstrap failed: E: no such suite") as caught:
            build_image(suite="bookwork")
        assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_versions_and_owners(cache: Path, tar: Path) -> None:
    with pytest.raises(UserError, match=r"no root file system.*\(cqd-hub sandbox build\)"):
        find_image()
    with pytest.raises(UserError, match=r"cqd-hub sandbox build --to mine\)"):
        find_image("mine")
    built(tar=tar)
    stamp = cache / "debian" / "stamp.json"
    content = json.loads(stamp.read_text())
    for change, words in (
        ({"packages": "0" * 16}, "of another version.*--force"),
        ({"format": 0}, "of another version.*--force"),
        ({"ids": {"uid": 5, "gid": 5, "count": 65536}}, "belongs to the user ids from 5"),
        ({"ids": [1, 2]}, "the stamp cannot be read.*--force"),
    ):
        stamp.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=words):
            find_image()
    stamp.write_text("{")
    with pytest.raises(UserError, match="the stamp cannot be read"):
        asyncio.run(open_machines("bubblewrap"))


def test_a_root_that_does_not_run(cache: Path, tar: Path) -> None:
    built(tar=tar)
    with pytest.raises(UserError, match="no machine can be started") as caught:
        asyncio.run(open_machines("bubblewrap"))
    assert "\n" not in str(caught.value)


def test_granted_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    me = os.geteuid()
    for text, first in (
        (f"{me}:200000:65536\n", 200000),
        (f"other:1:99999\n{me}:7:10\n{me}:300000:100000\n", 300000),
        ("nonsense\n:::\n", None),
        ("", None),
    ):
        (tmp_path / "subuid").write_text(text)
        assert ids._granted(str(tmp_path / "subuid")) == first
    assert ids._granted(str(tmp_path / "none")) is None
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(ids, "_granted", lambda path: None)
    assert ids.ids_here().ids == ids.Ids(12345, os.getegid(), 1)
