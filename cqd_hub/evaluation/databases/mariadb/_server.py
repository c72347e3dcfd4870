"""A private MariaDB server: its program, its box, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.sandbox import printable
from cqd_hub.evaluation.sandbox._start import spare_uid

_START_SECONDS = 60.0
_DISK_MB, _FILE_MB, _MEMORY_MB = 1024, 256, 4096
_FOLDER = "cqd-hub-db-"
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/bin", "/usr/bin")
_INSTALL = "install it: `apt install mariadb-server-core mariadb-client-core`"
# MySQL 8's default; MariaDB's own is more forgiving.
SQL_MODE = (
    "ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,"
    "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
)
# Makes the data folder, starts the server in it, and ends it when our end of stdin is closed.
_SCRIPT = """
set -e
trap '' XFSZ
ulimit -c 0; ulimit -f "$1"; ulimit -v "$2"
data=$3 socket=$4 install=$5 server=$6; shift 6
mkdir -p "$data/db" "$data/none" "$data/tmp"
export TMPDIR="$data/tmp"
"$install" --no-defaults --datadir="$data/db" --auth-root-authentication-method=normal \
  --skip-test-db --force --skip-name-resolve --innodb-log-file-size=8M \
  --innodb-buffer-pool-size=8M </dev/null >"$data/install.log" 2>&1 \
  || { tail -n 20 "$data/install.log" >&2; exit 1; }
"$server" --no-defaults --datadir="$data/db" --socket="$socket" --pid-file="$data/pid" \
  --tmpdir="$data/tmp" --secure-file-priv="$data/none" "$@" </dev/null &
server=$!
exec 3<&0
{ read -r _ <&3 || true; kill -9 $server; } &
wait $server
"""
_OPTIONS = (
    "--skip-networking",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--local-infile=0",
    "--symbolic-links=0",
    "--event-scheduler=DISABLED",
    "--performance-schema=OFF",
    "--log-warnings=0",
    f"--sql-mode={SQL_MODE}",
    "--character-set-server=utf8mb4",
    "--group-concat-max-len=1024",
    "--default-time-zone=+00:00",
    "--sysdate-is-now",
    "--lock-wait-timeout=20",
    "--innodb-lock-wait-timeout=5",
    "--max-connections=512",
    "--max-allowed-packet=1M",
    "--max-session-mem-used=256M",
    "--tmp-table-size=16M",
    "--max-heap-table-size=16M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=8M",
    "--innodb-autoextend-increment=4",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-temp-data-file-path=ibtmp1:12M:autoextend:max:200M",
)


def _find(*names: str) -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", ""), *_PLACES))
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def find_programs() -> tuple[str, str, str]:
    """Return server, installer and version.

    Raises:
        UserError: MariaDB is not installed.
    """
    server, installer = _find("mariadbd", "mysqld"), _find("mariadb-install-db")
    if server is None or installer is None:
        raise UserError("MariaDB is not installed", remedy=_INSTALL)
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
    _, _, rest = said.partition("Ver ")
    version = rest.split(" ", 1)[0]
    if "MariaDB" not in version:
        raise UserError(f"{server} is not MariaDB's", remedy=_INSTALL)
    return os.path.realpath(server), os.path.realpath(installer), version.partition("-")[0]


def _answers(path: str) -> bool:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(path)
            return True
    return False


def sweep() -> None:
    """Remove the folders that runs left which were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        number = folder.name.removeprefix(_FOLDER).partition("-")[0]
        with contextlib.suppress(OSError):
            # A process in another container has a number too, but its server answers.
            if number.isdecimal() and not Path("/proc", number).exists():
                old = time.time() - folder.stat().st_mtime > 2 * _START_SECONDS
                if old and not _answers(str(folder / "s")):
                    shutil.rmtree(folder, ignore_errors=True)


class Server:
    """One server process at a time, in bubblewrap; `start` again after it has died, with nothing
    left of before.

    Args:
        statement_seconds: Elapsed time of one statement.

    Attributes:
        version: MariaDB's.
        epoch: Grows with every start.

    Raises:
        UserError: MariaDB or bubblewrap is not installed.
    """

    def __init__(self, statement_seconds: float) -> None:
        self._server, self._installer, self.version = find_programs()
        self.statement_seconds = statement_seconds
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise UserError(
                "MariaDB runs only in bubblewrap, which is not installed",
                remedy="install it: `apt install bubblewrap`; or write engine: sqlite",
            )
        self._bwrap = bwrap
        self.epoch = 0
        self._process: asyncio.subprocess.Process | None = None
        self._folder: str | None = None

    @property
    def socket(self) -> str:
        return os.path.join(self._folder or "", "s")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            UserError: bubblewrap may not do what it must here.
            RunError: It does not start.
        """
        await self.stop()
        words = await self._try()
        if words.startswith("bwrap:"):
            raise UserError(
                f"MariaDB runs only in bubblewrap, which does not work here: {words}",
                remedy="allow user namespaces; or write engine: sqlite",
            )
        if words:
            raise RunError(
                f"MariaDB does not start: {words}",
                remedy=f"try `{self._server} --version`, and whether memory and /tmp have room",
            )
        self.epoch += 1

    async def _try(self) -> str:
        """Return why it did not start, or nothing."""
        await asyncio.to_thread(sweep)
        self._folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")
        uid = spare_uid() if os.geteuid() == 0 else None
        if uid is not None:
            os.chown(self._folder, uid, uid)
        log = os.path.join(self._folder, "log")
        with open(log, "wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                env={},
                cwd="/",
                user=uid,
                group=uid,
                extra_groups=None if uid is None else [],
                start_new_session=True,
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                while self.alive and not self._answers():
                    await asyncio.sleep(0.02)
        if self.alive and self._answers():
            return ""
        words = Path(log).read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
        await self.stop()
        return printable(words[-1]) if words else "no reason given"

    def _answers(self) -> bool:
        return _answers(self.socket)

    def _command(self) -> list[str]:
        assert self._folder is not None
        script = [
            "/bin/sh", "-c", _SCRIPT, "sh", str(_FILE_MB * 2048), str(_MEMORY_MB * 1024),
            "/data", "/run/db/s", self._installer, self._server, *_OPTIONS,
            f"--max-statement-time={self.statement_seconds}",
        ]  # fmt: skip
        command = [self._bwrap]
        for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
            if os.path.islink(path):
                command += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                command += ["--ro-bind", path, path]
        command += ["--ro-bind", "/usr", "/usr"]
        prefix = str(Path(self._server).parents[1])
        if not f"{prefix}/".startswith("/usr/"):
            command += ["--ro-bind", prefix, prefix]
        command += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
        command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        command += ["--dev", "/dev", "--remount-ro", "/dev", "--proc", "/proc"]
        command += ["--size", str(_DISK_MB << 20), "--tmpfs", "/data"]
        command += ["--bind", self._folder, "/run/db", "--remount-ro", "/"]
        command += ["--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000"]
        command += ["--die-with-parent", "--new-session"]
        command += ["--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin"]
        return [*command, "--", *script]

    def kill(self) -> None:
        """End it now; `start` makes another."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # the box ends with its first process

    async def stop(self) -> None:
        """End it and remove its folder."""
        if self._process is not None:
            self.kill()
            await self._process.wait()
            self._process = None
        if self._folder is not None:
            folder, self._folder = self._folder, None
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
