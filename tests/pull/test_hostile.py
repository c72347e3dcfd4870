"""Archives that somebody made to do harm, or that came apart: one line, and nothing is left."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, save

from cqd_hub.pull import source
from cqd_hub.pull.trust import CodeFound, check_tasks
from tests.pull.world import ARCHIVE, Result, World, with_values, world

pytestmark = pytest.mark.slow  # a process of its own for every archive

Edit = Callable[[World], None]


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def head(**changes: Any) -> Edit:
    return lambda there: there.change("cqd_hub.json", lambda data: data | changes)


def in_head(edit: Callable[[dict[str, Any]], None]) -> Edit:
    return lambda there: there.change("cqd_hub.json", edit)


def column(table: str, name: str, edit: Callable[[int, Any], Any]) -> Edit:
    return lambda there: there.rewrite(table, lambda found: with_values(found, name, edit))


def retyped(table: str, name: str, values: Callable[[int], pa.Array]) -> Edit:
    def edit(found: pa.Table) -> pa.Table:
        number = found.schema.get_field_index(name)
        return found.set_column(number, name, values(len(found)))

    return lambda there: there.rewrite(table, edit)


def file(path: str, content: bytes | str) -> Edit:
    return lambda there: there.put({path: content})


def both(*edits: Edit) -> Edit:
    def edit(there: World) -> None:
        for one in edits:
            one(there)

    return edit


def leave_nothing(there: World, done: Result) -> None:
    left = {path.name for path in there.folder.iterdir()} - {"hub", "machine"}
    assert not left
    assert "\x1b" not in done.out + done.err


LISTED = {
    "no head": (lambda there: there.remove("cqd_hub.json"), "is no archive"),
    "head is a list": (file("cqd_hub.json", "[1]"), "is not what `cqd-hub push` writes"),
    "head is no JSON": (file("cqd_hub.json", b"\xff{"), "is no JSON"),
    "head holds NaN": (file("cqd_hub.json", '{"format": NaN}'), "NaN is no number"),
    "head is too deep": (file("cqd_hub.json", "[" * 100_000), "is no JSON"),
    "newer format": (head(format=2), "has format 2; this cqd-hub reads up to 1"),
    "mistyped": (head(shards={"elites": "many"}), "shards.elites: input should be a valid int"),
    "too many shards": (head(shards={"elites": 10**9}), "shards.elites: input should be less"),
    "a shard too many": (
        in_head(lambda data: data["shards"].update(elites=2)),
        "has no data/elites/00001.parquet",
    ),
    "a path for a skill": (head(skills=["../../etc"]), "skills.0: string should match"),
    "escape in a name of a skill": (head(skills=["\x1b[2Jdb"]), "skills.0: string should match"),
    "no parquet": (file("data/elites/00000.parquet", "PAR1"), "is no parquet file"),
    "cut short": (
        lambda there: there.put(
            {
                "data/elites/00000.parquet": there.hub.file(ARCHIVE, "data/elites/00000.parquet")[
                    :-200
                ]
            }
        ),
        "is no parquet file",
    ),
    "a column is missing": (
        lambda there: there.rewrite("elites", lambda table: table.drop_columns(["cell"])),
        "has no column 'cell'",
    ),
    "a column of another type": (
        retyped("elites", "individual", lambda n: pa.array(["x"] * n)),
        "column 'individual' holds string, not int",
    ),
    "a score that is NaN": (column("elites", "average", lambda *_: np.nan), "holds NaN"),
    "a score that is nothing": (column("elites", "quality", lambda *_: None), "holds nothing"),
    "an elite twice": (
        lambda there: there.rewrite("elites", lambda t: pa.concat_tables([t, t])),
        "names an elite twice",
    ),
    "another skill": (
        column("elites", "skill", lambda row, skill: skill if row else "\x1b]0;x"),
        "names a skill that",
    ),
    "layout that is none": (file("layout.json", "{}"), "holds no layout: slots is no list"),
    "a huge slot": (
        lambda there: there.change("layout.json", lambda d: d["slots"][0].__setitem__(1, [2**60])),
        "holds no layout",
    ),
    "a huge rank": (
        lambda there: there.change("layout.json", lambda d: d["ranks"][0].__setitem__(0, 2**40)),
        "holds no layout: a rank of",
    ),
}


@pytest.mark.parametrize("name", LISTED)
def test_listing(there: World, name: str) -> None:
    edit, message = LISTED[name]
    edit(there)  # type: ignore[operator]
    done = there.cli("pull", "ann/small")
    assert message in done.error
    leave_nothing(there, done)


def test_escapes_are_not_shown(there: World) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07<script>\u202e\n"
    column("elites", "name", lambda *_: evil)(there)
    head(name=evil)(there)
    done = there.cli("pull", "ann/small")
    assert done.code == 0
    assert not any(c in done.out + done.err for c in "\x1b\x07\u202e")
    assert "?[2J?]0;owned?<script>" in done.err
    shown = there.cli("pull", "ann/small", "--json")
    assert shown.records[0]["name"] == evil  # escaped as JSON
    assert "\x1b" not in shown.out


def genome(edit: Callable[[bytes], bytes]) -> Edit:
    return column("genomes", "genome", lambda _, data: edit(data))


def tensors(edit: Callable[[dict[str, np.ndarray]], None], **metadata: str) -> Edit:
    """Edit what a genome holds; its hash no longer fits, so shapes must be refused before."""

    def changed(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        found = json.loads(data[8 : 8 + length])["__metadata__"]
        held = {name: np.array(value) for name, value in load(data).items()}
        edit(held)
        return save(held, found | metadata)

    return genome(changed)


def scaled(held: dict[str, np.ndarray]) -> None:
    held["coefficients"] *= 2


def longer(held: dict[str, np.ndarray]) -> None:
    held["coefficients"] = np.zeros(len(held["coefficients"]) + 1, np.float32)


def infinite(held: dict[str, np.ndarray]) -> None:
    held["coefficients"][0] = np.inf


def wider(held: dict[str, np.ndarray]) -> None:
    held["coefficients"] = held["coefficients"].astype(np.float64)


TAKEN = {
    "no safetensors": (genome(lambda data: b"\x80\x04pickle"), "is no genome that can be read"),
    "nothing": (genome(lambda data: b""), "is no genome that can be read"),
    "a header without end": (genome(lambda data: b"\xff" * 64), "is no genome that can be read"),
    "a header that is a list": (
        genome(lambda data: struct.pack("<Q", 2) + b"[]"),
        "is no genome that can be read",
    ),
    "a huge tensor": (
        genome(
            lambda data: (
                struct.pack("<Q", 92)
                + b'{"__metadata__":{"format":"1","basis":"x"},"coefficients":'
                b'{"dtype":"F32","shape":[9999999999]'
            )
        ),
        "is no genome that can be read",
    ),
    "another format": (tensors(lambda held: None, format="9"), "genome format '9'"),
    "another basis": (tensors(lambda held: None, basis="0" * 64), "has hash"),
    "changed values": (tensors(scaled), "was changed after it was pushed"),
    "too long": (tensors(longer), "coefficients: float32"),
    "infinite": (tensors(infinite), "coefficients: NaN or infinity"),
    "of another type": (tensors(wider), "coefficients: float64"),
    "a core of nothing": (
        tensors(lambda held: held.update({"core:../x": np.zeros((2, 2), np.float32)})),
        "a core of no matrix",
    ),
    "a core of another shape": (
        tensors(
            lambda held: held.update(
                {"core:model.layers.0.mlp.up_proj.weight": np.zeros((1, 1), np.float32)}
            )
        ),
        "a core: float32 [1, 1]",
    ),
    "noise of another shape": (
        tensors(lambda held: held.update({"noise:7": np.zeros(3, np.float32)})),
        "noise: float32 [3]",
    ),
    "noise without a seed": (
        tensors(lambda held: held.update({"noise:x": np.zeros(3, np.float32)})),
        "is no genome that can be read",
    ),
    "an id twice": (
        lambda there: there.rewrite("individuals", lambda t: pa.concat_tables([t, t])),
        "twice",
    ),
    "a genome twice": (
        lambda there: there.rewrite("genomes", lambda t: pa.concat_tables([t, t])),
        "holds the genome of individual 2 twice",
    ),
    "no genome": (
        lambda there: there.rewrite("genomes", lambda t: t.slice(0, 0)),
        "holds no genome of individual 2",
    ),
    "text for a genome": (
        retyped("genomes", "genome", lambda n: pa.array(["x"] * n)),
        "column 'genome' holds string, not bytes",
    ),
    "a hash with escapes": (
        column("individuals", "genome_hash", lambda *_: "\x1b[31m"),
        "published as ?[31m",
    ),
    "a basis of another run": (
        in_head(lambda data: data["basis"].update(hash="0" * 64)),
        "belongs to another basis",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_genomes(there: World, name: str) -> None:
    edit, message = TAKEN[name]
    edit(there)  # type: ignore[operator]
    done = there.cli("pull", "ann/small", "2", "--form", "genome", "--to", "made")
    assert message in done.error
    leave_nothing(there, done)


def factors(edit: Callable[[dict[str, Any]], None]) -> Edit:
    def change(there: World) -> None:
        for path in there.hub.files(ARCHIVE):
            if path.endswith("index.json") and path.startswith("basis/"):
                there.change(path, edit)

    return change


def outside(index: dict[str, Any]) -> None:
    for entry in index["slots"].values():
        entry["file"] = "../../../../../../etc/passwd"


BUILT = {
    "factors outside": (factors(outside), "index of factors that cannot be right"),
    "factors with another hash": (
        factors(lambda index: index.update(hash="0" * 64)),
        "index of factors that cannot be right",
    ),
    "a recipe without a rank": (file("run/recipe.json", "[]"), "has a recipe with no rank and"),
    "a model at a branch": (
        in_head(lambda data: data["models"]["base"].update(reference="ann/base@main")),
        "is not named at a commit",
    ),
    "a model that is a path": (
        in_head(lambda data: data["models"]["base"].update(reference="../../etc")),
        "is no repository of the Hub",
    ),
    "a model with another hash": (
        in_head(lambda data: data["models"]["base"].update(sha256="0" * 64)),
        "is not the base that the run was made with",
    ),
    "other experts than the layout's": (
        in_head(lambda data: data["models"]["experts"].__delitem__("os")),
        "names other experts than its layout",
    ),
}


@pytest.mark.parametrize("name", BUILT)
def test_models(there: World, name: str) -> None:
    edit, message = BUILT[name]
    edit(there)  # type: ignore[operator]
    done = there.cli("pull", "ann/small", "2", "--to", "made")
    assert message in done.error
    leave_nothing(there, done)


def test_names_of_the_repository_are_never_paths(there: World) -> None:
    target = there.folder / "machine" / "hf"
    there.put(
        {
            "../../escaped": "x",
            "data/genomes/../../../../escaped": "x",
            "/absolute": "x",
            "data/elites/\x1b[2J.parquet": "x",
        }
    )
    done = there.cli("pull", "ann/small", "2", "--form", "genome", "--to", "made")
    assert done.code == 0, done.err
    assert not [path for path in there.folder.rglob("*escaped*") if "hub" not in path.parts[:-1]]
    assert {path.name for path in target.rglob("*.parquet")} == {"00000.parquet"}


def test_too_large(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are known, and refused, before a byte is downloaded."""
    from cqd_hub.hub.client import Hub
    from cqd_hub.hub.reference import Reference

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub = Hub()
    hub.api.endpoint, hub.api.token = there.hub.url, there.token
    opened = source.Source(hub, Reference("ann/small", None, "dataset"))
    there.hub.log.reset()
    with pytest.raises(source.UserError, match="at most 10 bytes are read"):
        opened.fetch("layout.json", limit=10)
    monkeypatch.setattr(source, "TOTAL", 1000)
    with pytest.raises(source.UserError, match="of a repository 1000 bytes"):
        opened.fetch("layout.json", limit=10**6)
    assert not len(there.hub.log)


def test_rows_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cqd_hub.pull import parquet

    target = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(1000))}), target)
    path = tmp_path / "table.parquet"
    path.write_bytes(target.getvalue())
    monkeypatch.setattr(parquet, "_ROWS", 999)
    with pytest.raises(parquet.UserError, match="has 1000 rows; at most 999"):
        list(parquet.read_rows(path, {"id": "int"}, where="x"))
    monkeypatch.setattr(parquet, "_ROWS", 1000)
    monkeypatch.setattr(parquet, "_UNPACKED", 100)
    with pytest.raises(parquet.UserError, match="row group of"):
        list(parquet.read_rows(path, {"id": "int"}, where="x"))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.yaml", "task: t\nprocess_results: !function u.f\n", "names code (!function)"),
        ("t.yaml", "a: !!python/object/apply:os.system [id]\n", "names Python"),
        ("u.py", "print(1)\n", "may be code"),
        ("data.pkl", "x", "may be code"),
        ("t.yaml", "doc_to_text: '{{ doc.__class__ }}'\n", "reads __class__"),
        ("t.yaml", "doc_to_text: '{{ q.format(1) }}'\n", "uses call"),
        ("t.yaml", "doc_to_text: \"{{ q['__cla' ~ 'ss__'] }}\"\n", "reads a computed name"),
        ("t.yaml", "doc_to_text: '{% set k = q %}{{ d[k] }}'\n", "reads a computed name"),
        ("t.yaml", "doc_to_text: '{{ q | attr(x) }}'\n", "uses the filter attr"),
        ("t.yaml", "doc_to_text: '{{ q | map(attribute=x) }}'\n", "uses"),
        ("t.yaml", "doc_to_text: '{% include q %}'\n", "uses include"),
        ("t.yaml", "doc_to_text: '{{ 9 ** 9 ** 9 }}'\n", "uses pow"),
        ("t.yaml", "doc_to_text: ['{{ x', 1]\n", "cannot be parsed"),
        ("t.yaml", "unsafe_code: true\n", "has the key 'unsafe_code'"),
        ("t.yaml", "include: ../../x.yaml\n", "has the key 'include'"),
        ("t.yaml", "metric_list: [{metric: ann/evil}]\n", "has the metric 'ann/evil'"),
        ("t.yaml", "environment: world.py:World\n", "names the environment 'world.py:World'"),
        ("t.yaml", "environment: /tmp/x.py:World\n", "names the environment"),
        ("t.yaml", "environment: agentbench_db\noptions: {data: x.jsonl}\n", None),
        ("t.yaml", "a: &a [*a]\n", None),
        ("t.yaml", "a: [\n", "is no YAML that can be checked"),
        ("t.yaml", "a: " + "[" * 5000 + "]" * 5000, "checked"),
        ("t.yaml", "unsafe_code: true\nmetadata: {execution: python}\n", None),
        ("t.yaml", "doc_to_text: '{% if a %}{{ a.b | trim }}{% endif %}: {{ c[0] }}'\n", None),
        ("rows.jsonl", '{"q": "{{ x.__class__ }}"}\n', None),
    ],
)
def test_what_is_code(name: str, text: str, reason: str | None) -> None:
    if reason is None:
        check_tasks({name: text.encode()}, (), where="x")
        return
    with pytest.raises(CodeFound) as found:
        check_tasks({name: text.encode()}, (), where="x")
    assert reason in str(found.value)
    digest = str(found.value).rpartition("--trust ")[2].rstrip(")")
    check_tasks({name: text.encode()}, [digest], where="x")
