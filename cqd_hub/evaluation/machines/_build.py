"""`cqd-hub sandbox build`: a root file system from Debian packages, whole or not at all."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.sandbox import printable

from ._bubblewrap import launch_plan, launcher, launcher_frame
from ._ids import ids_here
from ._image import LABEL, OFFERED, PACKAGES, ROOT, Image, image_folder, read_image, write_stamp

SUITE = "bookworm"
_INSTALL = "install it: `apt install mmdebstrap uidmap`, or give a ready one with --tar FILE"
# Inside the new root: a repository of OFFERED with what they need, and nothing of this host.
_FINISH = f"""
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get clean
apt-get install --yes --quiet --download-only {" ".join(OFFERED)} >&2
mkdir -p /opt/packages
mv /var/cache/apt/archives/*.deb /opt/packages/
cd /opt/packages
for file in *.deb; do
  dpkg-deb --field "$file"
  echo "Filename: ./$file"
  echo "Size: $(stat -c %s "$file")"
  echo "SHA256: $(sha256sum "$file" | cut -d ' ' -f 1)"
  echo
done > Packages
"""
_LEAVE = """
set -eu
rm -rf /etc/apt/sources.list.d /var/lib/apt/lists /var/cache/apt/*.bin /etc/apt/apt.conf.d/*proxy*
mkdir -p /etc/apt/sources.list.d /var/lib/apt/lists/partial
echo 'deb [trusted=yes] file:/opt/packages ./' > /etc/apt/sources.list
echo 'APT::Sandbox::User "root";' > /etc/apt/apt.conf.d/90machine
echo box > /etc/hostname
printf '127.0.0.1 localhost box\\n::1 localhost\\n' > /etc/hosts  # as in `box.layers`
rm -f /etc/resolv.conf /etc/machine-id /var/lib/dbus/machine-id
: > /etc/resolv.conf
: > /etc/machine-id
find /var/log -type f -exec truncate -s 0 {} +
apt-get update -qq
"""
# As the machine's root: device nodes cannot be made there, and machines have their own.
_EXTRACT = (
    "mkdir -m 755 root && tar -x -p {owner} --numeric-owner -f - -C root "
    "--exclude './dev/*' --exclude 'dev/*'"
)
_PACK = "tar -c --numeric-owner -f - -C root ."
_REMOVE = "rm -rf root"


def build_image(
    name: str | Path | None = None,
    *,
    suite: str = SUITE,
    tar: Path | None = None,
    force: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Image:
    """Make the root file system that machines start from.

    Args:
        name: A name in the cache, or a folder (with a slash).
        suite: Debian release.
        tar: A ready root file system instead of packages.
        force: Replace what is there.
        note: Called with lines of progress.

    Raises:
        UserError: Something is missing here, or an image is there already.
        RunError: It did not succeed; nothing was changed.
    """
    folder = image_folder(name)
    if not sys.platform.startswith("linux"):
        raise UserError("machines need Linux", remedy="use it there, or in a virtual machine")
    if folder.exists() and not force and any(folder.iterdir()):
        read_image(folder)
        raise UserError("there is one already", where=str(folder), remedy="--force builds it again")
    if tar is not None and not tar.is_file():
        raise UserError("there is no such file", where=str(tar), remedy="give the tar of a root")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    began = time.monotonic()
    try:
        if tar is None:
            made = _debian(temporary, suite, note)
        else:
            note(f"unpacking {tar}")
            with tar.open("rb") as stream:
                _extract(temporary, stream, tar.suffix)
            made = f"from {tar.name}"
        _check(temporary)
        write_stamp(temporary, made, ids_here().ids)
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            os.replace(folder, old)
            os.replace(temporary, folder)
            _remove(old)
        else:
            os.replace(temporary, folder)
    except BaseException:
        _remove(temporary)
        raise
    note(f"ready in {time.monotonic() - began:.0f} s: {folder}")
    return read_image(folder)


def _debian(temporary: Path, suite: str, note: Callable[[str], None]) -> str:
    scripts = {}
    for name, text in (("finish", _FINISH), ("leave", _LEAVE)):
        scripts[name] = temporary / name
        scripts[name].write_text(text)
    temporary.chmod(0o755)
    if shutil.which("mmdebstrap"):
        note(f"Debian {suite} by mmdebstrap: {len(PACKAGES)} packages and what they need")
        _by_mmdebstrap(temporary, suite, scripts)
    elif shutil.which("debootstrap") and os.geteuid() == 0:
        note(f"Debian {suite} by debootstrap: {len(PACKAGES)} packages and what they need")
        _by_debootstrap(temporary, suite, scripts)
    elif shutil.which("debootstrap"):
        raise UserError("without root, mmdebstrap is needed and not installed", remedy=_INSTALL)
    else:
        raise UserError("neither mmdebstrap nor debootstrap is installed", remedy=_INSTALL)
    for script in scripts.values():
        script.unlink()
    return f"Debian {suite}, {platform.machine()}"


def _by_mmdebstrap(temporary: Path, suite: str, scripts: dict[str, Path]) -> None:
    mode = "root" if os.geteuid() == 0 else "unshare"
    if mode == "unshare" and ids_here().ids.count == 1:
        raise UserError(
            "an ordinary user needs newuidmap and a range of ids in /etc/subuid and /etc/subgid",
            remedy="`apt install uidmap` and `usermod --add-subuids 100000-165535 --add-subgids "
            "100000-165535 USER`, or --tar FILE",
        )
    command = [
        *("mmdebstrap", f"--mode={mode}", "--variant=minbase", "--format=tar"),
        f"--include={','.join(PACKAGES)}",
        f'--customize-hook=chroot "$1" sh < {scripts["finish"]}',
        # Its own cleaning up, which empties apt's folders, must come before ours.
        "--skip=cleanup/apt/lists",
        f'--customize-hook=chroot "$1" sh < {scripts["leave"]}',
        *(suite, "-"),
    ]
    _pipe(command, temporary)


def _by_debootstrap(temporary: Path, suite: str, scripts: dict[str, Path]) -> None:
    tree = temporary / "tree"
    command = [
        *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(suite, str(tree)),
    ]
    _run(command, stdout=subprocess.DEVNULL)
    for script in scripts.values():
        with script.open() as text:
            _run(["chroot", str(tree), "sh"], stdin=text, stdout=subprocess.DEVNULL)
    _pipe(["tar", "-c", "--numeric-owner", "-C", str(tree), "."], temporary)
    shutil.rmtree(tree)


def _run(command: list[str], **streams: int | IO[str] | None) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
        **streams,  # type: ignore[call-overload]
    )
    if done.returncode != 0:
        raise _failure(command[0], done.stderr)


def _pipe(command: list[str], temporary: Path) -> None:
    """Unpack what *command* writes."""
    with tempfile.TemporaryFile() as errors:
        environment = {**os.environ, "LC_ALL": "C"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as maker:
            assert maker.stdout is not None
            problem: RunError | None = None
            try:
                _extract(temporary, maker.stdout, "")
            except RunError as error:
                problem = error
        if maker.returncode != 0:
            errors.seek(0)
            raise _failure(command[0], errors.read())
        if problem is not None:
            raise problem


def _failure(program: str, said: bytes) -> RunError:
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("E:")] or lines or ["it said nothing"]
    return RunError(
        f"{program} failed: {printable(telling[0], 300)}",
        remedy="see that Debian's archive can be reached, or give a ready root with --tar FILE",
    )


def _extract(temporary: Path, stream: IO[bytes], suffix: str) -> None:
    owner = "--same-owner" if ids_here().ids.count > 1 else "--no-same-owner"
    kinds = {".gz": "-z", ".tgz": "-z", ".xz": "-J", ".zst": "--zstd", ".bz2": "-j"}
    within(temporary, _EXTRACT.format(owner=f"{owner} {kinds.get(suffix, '')}"), source=stream)


def within(
    folder: Path, script: str, *, source: IO[bytes] | None = None, target: IO[bytes] | None = None
) -> None:
    """Run one of our own shell scripts in *folder* as the root that owns an image.

    Raises:
        RunError: It failed; the message is what it said.
    """
    # A range of ids is none of this user's: the folder must be open to them meanwhile.
    mode = folder.stat().st_mode & 0o777
    folder.chmod(0o777)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            launcher(),
            stdin=subprocess.PIPE,
            stdout=target or subprocess.DEVNULL,
            stderr=errors,
            env={},
        )
        assert process.stdin is not None
        try:
            process.stdin.write(launcher_frame({**launch_plan(folder), "action": script}))
            process.stdin.flush()
            if source is not None:
                shutil.copyfileobj(source, process.stdin, 1 << 20)
            process.stdin.close()
        except BrokenPipeError:
            pass
        code = process.wait()
        folder.chmod(mode)
        if code != 0:
            errors.seek(0)
            lines = errors.read(100_000).decode("utf-8", "replace").strip().splitlines()
            raise RunError(
                f"unpacking failed: {printable(lines[-1]) if lines else 'it said nothing'}",
                where=str(folder),
                remedy="see `cqd-hub doctor`, and that the disk has 2 GB free",
            )


def _check(temporary: Path) -> None:
    for name in ("usr/bin/python3", "bin/bash", "root"):
        if not os.path.lexists(temporary / ROOT / name):
            raise UserError(
                f"no {name} in this root file system", remedy="give one with bash and Python 3.9"
            )


def _remove(folder: Path) -> None:
    if (folder / ROOT).exists():
        within(folder, _REMOVE)
    shutil.rmtree(folder, ignore_errors=True)


def pack(image: Image, target: IO[bytes]) -> None:
    """Write the root file system as a tar, with the ids of a machine."""
    within(image.folder, _PACK, target=target)


def to_docker(image: Image, name: str) -> None:
    """Make it an image of the Docker engine.

    Raises:
        UserError: No docker.
        RunError: The engine refuses.
    """
    if shutil.which("docker") is None:
        raise UserError("docker is not installed", remedy="install it, or leave out --docker")
    with tempfile.TemporaryFile() as errors:
        label = f"LABEL {LABEL}={image.packages}"
        taker = subprocess.Popen(
            ["docker", "import", "--change", label, "-", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        assert taker.stdin is not None
        pack(image, taker.stdin)
        taker.stdin.close()
        if taker.wait() != 0:
            errors.seek(0)
            raise _failure("docker import", errors.read())
