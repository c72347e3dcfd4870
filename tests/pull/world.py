"""A small run over models of the Hub, pushed once; every test has its own Hub that holds it."""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cqd_hub import assets
from tests.hub.server import HubServer

ARCHIVE = "datasets/ann/small"
RECIPE = """\
name: small
base: ann/base
experts: {coding: ann/coding, os: ann/os, db: ann/db}
skills:
  coding: {task: quickstart_coding}
  os: {task: quickstart_os}
  db: {task: quickstart_db}
samples: {optimisation: 6, validation: 4, test: 4}
search: {children: 3, children_per_step: 1}
variation: {mutation: {kind: svd, per: direction}}
"""


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        """Its one line of error."""
        assert self.code in (1, 2), self
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert lines[0] == self.err.splitlines()[-1]
        return lines[0]


class World:
    """A Hub with the archive, and a machine that knows nothing of it."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder, self.token = hub, folder, hub.token("ann")

    def cli(self, *arguments: object, machine: str = "machine", **extra: str) -> Result:
        """A command on a *machine* with its own caches."""
        place = self.folder / machine
        place.mkdir(exist_ok=True)
        environment = self.hub.environment(
            token=self.token,
            home=Path(extra.pop("HF_HOME", place / "hf")),
            CQD_HUB_CACHE=str(place / "cache"),
            CQD_HUB_PATIENCE="1",
            HF_DATASETS_CACHE=os.environ["HF_DATASETS_CACHE"],
            OMP_NUM_THREADS="1",
            **extra,
        )
        command = [sys.executable, "-m", "cqd_hub.cli.app", *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=self.folder, text=True, capture_output=True, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    # The archive, spoilt.

    def json(self, path: str, repo: str = ARCHIVE) -> Any:
        return json.loads(self.hub.file(repo, path))

    def put(self, files: Mapping[str, bytes | str], repo: str = ARCHIVE) -> None:
        self.hub.put(repo, files)

    def change(self, path: str, edit: Callable[[Any], Any], repo: str = ARCHIVE) -> None:
        """Edit a JSON file."""
        data = self.json(path, repo)
        changed = edit(data)
        self.put({path: json.dumps(data if changed is None else changed)}, repo)

    def rows(self, table: str) -> list[dict[str, Any]]:
        return pq.read_table(
            io.BytesIO(self.hub.file(ARCHIVE, f"data/{table}/00000.parquet"))
        ).to_pylist()

    def rewrite(self, table: str, edit: Callable[[pa.Table], pa.Table]) -> None:
        """Edit a shard."""
        name = f"data/{table}/00000.parquet"
        made = edit(pq.read_table(io.BytesIO(self.hub.file(ARCHIVE, name))))
        target = io.BytesIO()
        pq.write_table(made, target)
        self.put({name: target.getvalue()})

    def drop(self, repo: str) -> None:
        """Delete a repository."""
        del self.hub.site.store.repos[repo]

    def remove(self, *prefixes: str) -> None:
        """Delete files of the archive."""
        found = self.hub.repo(ARCHIVE)
        tree = dict(found.resolve("main").tree)
        kept = {path: file for path, file in tree.items() if not path.startswith(prefixes)}
        found.commit("main", kept, author="ann", title="Remove files")


def with_values(table: pa.Table, column: str, edit: Callable[[int, Any], Any]) -> pa.Table:
    """*table* with every value of a column edited, given its row."""
    number = table.schema.get_field_index(column)
    values = [edit(row, value) for row, value in enumerate(table.column(column).to_pylist())]
    return table.set_column(number, column, pa.array(values, table.schema.field(column).type))


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """The Hub as it was after the push."""
    shutil.copytree(_made() / "hub", folder / "hub")
    with HubServer(folder=folder / "hub") as hub:
        yield World(hub, folder)


def run_folder() -> Path:
    """The run directory that was pushed; to be read only."""
    return _made() / "run"


@cache
def _made() -> Path:
    place = Path(tempfile.mkdtemp(prefix="cqd-hub-pushed-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    models = assets.folder("recipes") / "quickstart" / "models"
    (place / "recipe.yaml").write_text(RECIPE)
    with HubServer(folder=place / "hub") as hub:
        for name in ("base", "coding", "os", "db"):
            hub.put_model(f"ann/{name}", models / name)
        origin = World(hub, place)
        for command in (
            ("evolve", "recipe.yaml", "--out", "run", "-q"),
            ("push", "run", "--to", "ann/small", "-q"),
        ):
            done = origin.cli(*command)
            assert done.code == 0, done.err
    return place
