"""DBBench played on real engines, over samples of our own and the public ones where they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from cqd_hub.assets import folder
from cqd_hub.errors import UserError
from cqd_hub.evaluation.databases.mariadb._server import _find
from cqd_hub.evaluation.environments.agentbench_db import DBBench
from cqd_hub.evaluation.environments.agentbench_db.data import problem_of
from cqd_hub.evaluation.environments.agentbench_db.environment import INVALID
from cqd_hub.evaluation.episodes import (
    COMPLETED,
    CONTEXT_FULL,
    ROUNDS_SPENT,
    Message,
    Observation,
    Resources,
    Sample,
    ToolCall,
    Verdict,
)
from cqd_hub.evaluation.episodes.manifest import find_manifest, load_manifest
from cqd_hub.evaluation.sandbox import Sandbox, open_sandbox
from cqd_hub.recipe.schema import Evaluation

SAMPLES = Path(__file__).parent / "samples.jsonl"
PUBLIC = Path(__file__).parents[4].parent / "shared/data/agentbench/dbbench"
OTHER, COUNT, SEVERAL, _, MEAN, INSERT, UPDATE, DELETE = range(8)
T = TypeVar("T")


class Bench(NamedTuple):
    """An engine that every test's environment shares, and its event loop."""

    loop: asyncio.AbstractEventLoop
    engine: str
    databases: Any

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def environment(self, data: Path = SAMPLES, **options: Any) -> DBBench:
        environment = DBBench(
            DBBench.Options(data=str(data), engine=self.engine, **options), Path("/")
        )
        environment._databases = self.databases
        return environment

    def play(self, sample: Sample | int, *replies: str, **options: Any) -> list[Any]:
        """The turns."""
        environment = self.environment(**options)
        if isinstance(sample, int):
            sample = environment.samples()["samples"][sample]
        return self.run(played(environment, sample, *replies))


async def played(environment: DBBench, sample: Sample, *replies: str | Message) -> list[Any]:
    episode = await environment.begin(sample)
    turns: list[Any] = []
    for reply in replies:
        message = Message("assistant", reply) if isinstance(reply, str) else reply
        turns.append(await episode.step(message))
        if isinstance(turns[-1], Verdict):
            break
    else:
        turns.append(await episode.end(CONTEXT_FULL))
    await episode.close()
    return turns


def operation(sql: str) -> str:
    return f"I look.\nAction: Operation\n```sql\n{sql}\n```"


def answer(*values: str) -> str:
    return f"I know.\nAction: Answer\nFinal Answer: {json.dumps(values, ensure_ascii=False)}"


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "mariadb" and _find("mariadbd", "mysqld") is None:
        pytest.skip("MariaDB is not installed")
    loop = asyncio.new_event_loop()
    boxes: list[Sandbox] = []

    async def sandbox() -> Sandbox:
        if not boxes:
            boxes.append(await open_sandbox())
        return boxes[0]

    opened = DBBench(DBBench.Options(data=str(SAMPLES), engine=request.param), Path("/"))
    loop.run_until_complete(opened.open(Resources(Evaluation(), sandbox, print)))
    assert opened.guarantees
    yield Bench(loop, request.param, opened._databases)
    loop.run_until_complete(opened.close())
    for box in boxes:
        loop.run_until_complete(box.close())
    loop.close()


@pytest.mark.parametrize("dialect", ["agentbench-v0.2", "cycleqd"])
def test_who_does_what_was_asked_passes_and_who_does_nothing_fails(
    bench: Bench, dialect: str
) -> None:
    environment = bench.environment(dialect=dialect)
    for sample in environment.samples()["samples"]:
        problem = problem_of(sample.document)
        replies = [operation(problem.label[0])] if problem.modifies else []
        assert bench.run(played(environment, sample, *replies, answer(*problem.label)))[-1] == (
            Verdict(1.0)
        )
        for idle in (answer(), "", "I do not know."):
            assert bench.run(played(environment, sample, idle))[-1].score == 0.0


def test_the_model_sees_what_the_connector_prints(bench: Bench) -> None:
    one, none, missing, last = bench.play(
        OTHER,
        operation("SELECT Ship, `Crew size`, COUNT(*) FROM `Sailing Log` WHERE Ship LIKE 'nord%'"
                  " GROUP BY Ship, `Crew size`"),
        operation("UPDATE `Sailing Log`\nSET Ship = 'x'\nWHERE 1 = 0;"),
        operation("SELECT * FROM Log"),
        answer("Bodø"),
    )  # fmt: skip
    assert one == Observation((Message("user", "[('Nordlys', '12', 1)]"),))
    assert none == Observation((Message("user", "[]"),))
    assert missing.messages[0].content.startswith("1146 (42S02): Table '")
    assert last == Verdict(1.0)


def test_long_results_are_cut(bench: Bench) -> None:
    sql = "SELECT a.* FROM " + ", ".join(f"`Sailing Log` {name}" for name in "abcde")
    (seen, _) = bench.play(OTHER, operation(sql))
    text = seen.messages[0].content
    assert text.startswith("[('")
    assert text.endswith("[TRUNCATED]")
    assert len(text) == 811


def test_the_rounds(bench: Bench) -> None:
    look, change = operation("SELECT 1"), operation("UPDATE `Sailing Log` SET `Crew size` = '8' "
                                                    "WHERE Ship = 'Ternen'")  # fmt: skip
    for dialect, limit in (("agentbench-v0.2", 15), ("cycleqd", 5)):
        assert bench.environment(dialect=dialect).rounds == limit + 1
        turns = bench.play(OTHER, *[look] * 20, dialect=dialect)
        assert len(turns) == limit + 1
        assert turns[-1] == Verdict(0.0, ROUNDS_SPENT, "the answer is not right")
        late = bench.play(OTHER, *[look] * limit, answer("Bodø"), dialect=dialect)
        assert late[-1] == Verdict(1.0)
        # A change counts however the conversation ends.
        assert bench.play(UPDATE, change, *[look] * 20, dialect=dialect)[-1].score == 1.0
        assert bench.play(UPDATE, change, "Done.", dialect=dialect)[-1] == Verdict(1.0, INVALID)
        assert bench.play(UPDATE, change, dialect=dialect)[-1] == Verdict(1.0, CONTEXT_FULL)
    assert len(bench.play(OTHER, *[look] * 9, operations=2)) == 3


def test_an_operation_without_sql(bench: Bench) -> None:
    reply = 'Action: Operation\nSELECT 1\nFinal Answer: ["Bodø"]'
    assert bench.play(OTHER, reply)[-1].status == INVALID
    assert bench.play(OTHER, reply, dialect="cycleqd")[-1] == Verdict(1.0)


def call(name: str, **arguments: Any) -> Message:
    return Message("assistant", "", (ToolCall(name, arguments, "c1"),))


def test_function_calls(bench: Bench) -> None:
    environment = bench.environment(dialect="agentbench-fc")
    samples = environment.samples()["samples"]
    assert [tool.name for tool in environment.tools] == ["execute_sql", "commit_final_answer"]
    assert environment.rounds == 15

    def play(index: int, *replies: Message) -> list[Any]:
        return bench.run(played(environment, samples[index], *replies))

    seen, text, unknown, empty, verdict = play(
        COUNT,
        call("execute_sql", query="SELECT Harbour FROM `Sailing Log`"),
        Message("assistant", "Two, I think."),
        call("drop_everything"),
        call("execute_sql"),
        call("commit_final_answer", answers=["2.004"]),
    )
    assert seen.messages == (Message("tool", "[('Bodø',), ('Tromsø',), ('Bodø',)]", call="c1"),)
    assert text.messages[0].role == "user"
    assert unknown.messages[0].role == empty.messages[0].role == "tool"
    assert verdict == Verdict(1.0)
    for index in (INSERT, UPDATE, DELETE):
        change = call("execute_sql", query=problem_of(samples[index].document).label[0])
        done = call("commit_final_answer", answers=["done"])
        assert play(index, change, done)[-1] == Verdict(1.0)
        assert play(index, done)[-1].score == 0.0
        assert play(index, change)[-1].score == 0.0  # never committed
    assert play(OTHER, call("commit_final_answer"))[-1].score == 0.0
    assert play(SEVERAL, call("commit_final_answer", answers="['Havsula', 'Nordlys']"))[-1].score


def test_a_table_that_cannot_be_made_is_a_fault(bench: Bench, tmp_path: Path) -> None:
    record = json.loads(SAMPLES.read_text().splitlines()[0])
    twice, ragged, nameless, huge = (json.loads(json.dumps(record)) for _ in range(4))
    twice["table"]["table_info"]["columns"][1]["name"] = "SHIP"
    ragged["table"]["table_info"]["rows"][2] = ["Havsula"]
    nameless["table"]["table_info"]["columns"][1]["name"] = ""
    huge["table"]["table_info"]["columns"] = [{"name": f"c{number}"} for number in range(5000)]
    huge["table"]["table_info"]["rows"] = []
    data = tmp_path / "faulty.jsonl"
    data.write_text("\n".join(json.dumps(each) for each in (twice, ragged, nameless, huge)))
    environment = bench.environment(data)
    samples = environment.samples()["faulty"]
    faults = [sample.fault for sample in samples]
    assert "'ship' twice" in faults[0]
    assert "row 3 of table 'Sailing Log' has 1 cells for 3 columns" in faults[1]
    assert bool(faults[2]) == (bench.engine == "mariadb")
    assert len({sample.id for sample in samples}) == 4
    for sample in (samples[0], samples[1], samples[3]):  # what is not foreseen is no crash either
        verdict = bench.run(played(environment, sample, answer("Bodø")))[-1]
        assert verdict.score == 0.0
        assert verdict.note


def test_the_public_dev_set(bench: Bench) -> None:
    if not PUBLIC.is_dir():
        pytest.skip(f"no {PUBLIC}")
    environment = bench.environment(PUBLIC)
    samples = environment.samples()["dev"]
    faulty = [index for index, sample in enumerate(samples) if sample.fault]
    assert faulty == ([5] if bench.engine == "mariadb" else [])
    passed = idle = 0.0
    for sample in samples:
        if sample.fault:
            continue
        problem = problem_of(sample.document)
        replies = [operation(problem.label[0])] if problem.modifies else []
        turns = bench.run(played(environment, sample, *replies, answer(*problem.label)))
        passed += turns[-1].score
        idle += bench.run(played(environment, sample, answer()))[-1].score
    assert passed == len(samples) - len(faulty)
    assert idle == 0


def test_many_samples_of_one_table_at_once(bench: Bench) -> None:
    environment = bench.environment()
    samples = environment.samples()["samples"]
    good = operation(problem_of(samples[UPDATE].document).label[0])
    bad = operation("DROP TABLE `Sailing Log`")

    async def play() -> list[list[Any]]:
        return await asyncio.gather(
            *(played(environment, samples[UPDATE], good if n % 2 else bad, "") for n in range(24))
        )

    scores = [turns[-1].score for turns in bench.run(play())]
    assert scores == [float(number % 2) for number in range(24)]


def test_the_server_dying_costs_no_verdict() -> None:
    if _find("mariadbd", "mysqld") is None:
        pytest.skip("MariaDB is not installed")

    async def play() -> Any:
        environment = DBBench(DBBench.Options(data=str(SAMPLES), engine="mariadb"), Path("/"))
        await environment.open(Resources(Evaluation(), open_sandbox, print))
        sample = environment.samples()["samples"][UPDATE]
        episode = await environment.begin(sample)
        change = operation(problem_of(sample.document).label[0])
        await episode.step(Message("assistant", change))
        environment._databases.server.kill()  # type: ignore[union-attr]
        turn = await episode.step(Message("assistant", answer()))
        await episode.close()
        await environment.close()
        return turn

    assert asyncio.run(play()) == Verdict(1.0, COMPLETED)


def test_kind_names_dialect_prompts_and_engine() -> None:
    kinds = {
        DBBench(
            DBBench.Options(data=str(SAMPLES), dialect=dialect, prompts=prompts, engine=engine),
            Path("/"),
        ).kind
        for dialect in ("agentbench-v0.2", "agentbench-fc", "cycleqd")
        for prompts in ("own", "none")
        for engine in ("sqlite", "mariadb")
    }
    assert len(kinds) == 12
    assert "agentbench-v0.2/own-prompts/sqlite" in kinds


def test_what_is_not_repeatable_is_not_remembered(bench: Bench) -> None:
    remembered = bench.environment().remembered
    assert remembered(operation("SELECT Ship, NOW(), RAND() FROM `Sailing Log`"))
    for sql in (
        "SELECT UUID()",
        "SELECT uuid_short()",
        "SELECT CONNECTION_ID()",
        "SHOW PROCESSLIST",
    ):
        once, again = (bench.play(OTHER, operation(sql))[0] for _ in "12")
        assert remembered(operation(sql)) == (bench.engine == "sqlite")
        assert once == again or bench.engine == "mariadb"


def test_no_data_is_one_line() -> None:
    with pytest.raises(UserError, match="no data"):
        DBBench(DBBench.Options(), Path("/"))
    with pytest.raises(UserError, match="no such file"):
        DBBench(DBBench.Options(data="nowhere.jsonl"), Path("/tmp")).samples()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "is no DBBench record"),
        ("{}", "no type"),
        ('{"type": ["other"], "table": {}}', "no table_info"),
        ('{"type": ["other"], "table": []}', "no table"),
        (
            '{"type": ["other"], "description": "x", "table": '
            '{"table_name": "t", "table_info": {"columns": [], "rows": []}}}',
            "no label",
        ),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, line: str, words: str) -> None:
    data = tmp_path / "dev.jsonl"
    data.write_text(SAMPLES.read_text().splitlines()[0] + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=words) as caught:
        DBBench(DBBench.Options(data=str(data)), Path("/")).samples()
    assert caught.value.where == f"{data}:3"


def test_a_checkout_has_both_files(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "dbbench"
    folder.mkdir(parents=True)
    for name in ("dev", "standard"):
        (folder / f"{name}.jsonl").write_text(SAMPLES.read_text())
    found = DBBench(DBBench.Options(data=str(tmp_path)), Path("/")).samples()
    assert list(found) == ["dev", "standard"]
    assert [sample.id for sample in found["dev"]] == [sample.id for sample in found["standard"]]


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("agentbench_db", "agentbench-v0.2"),
        ("agentbench_db_fc", "agentbench-fc"),
        ("agentbench_db_cycleqd", "cycleqd"),
    ],
)
def test_the_shipped_manifests(name: str, dialect: str, tmp_path: Path) -> None:
    place = find_manifest(name, [folder("evals")], tmp_path, "skills.db")
    assert place is not None
    (tmp_path / "mine.jsonl").write_text(SAMPLES.read_text())
    given = {"data": "mine.jsonl", "engine": "mariadb"}
    environment = load_manifest(*place, given, tmp_path, "skills.db").environment
    assert environment.kind == f"{dialect}/own-prompts/mariadb"
    assert len(environment.samples()["mine"]) == 8
    with pytest.raises(UserError, match="no data"):
        load_manifest(*place, {}, tmp_path, "skills.db")
