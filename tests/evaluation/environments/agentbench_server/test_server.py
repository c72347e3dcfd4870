"""Samples played on a server that speaks AgentBench's protocols, in good times and bad."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cqd_hub import assets
from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.evaluation.environments.agentbench_server import TaskServer
from cqd_hub.evaluation.environments.agentbench_server.client import checked_url
from cqd_hub.evaluation.environments.agentbench_server.v02 import harmless
from cqd_hub.genome import Basis
from cqd_hub.recipe import read_yaml

from .common import caller, evaluate, expert
from .official import COUNT, Official, serve


@pytest.fixture
def databases() -> Iterator[Official]:
    with serve("v0.2", "pets") as official:
        yield official


@pytest.fixture
def sums() -> Iterator[Official]:
    with serve("v0.2", "sums") as official:
        yield official


@pytest.fixture
def calls() -> Iterator[Official]:
    with serve("fc", "pets") as official:
        yield official


def environment(official: Official, **options: Any) -> TaskServer:
    given = {"url": official.url, "protocol": official.protocol, "name": official.name}
    return TaskServer(TaskServer.Options(**{**given, **options}), Path("/"))


# Playing.


def test_databases_are_judged_by_the_server(databases: Official, basis: Basis) -> None:
    found = evaluate(databases, basis, expert)
    assert [one.sample for one in found] == [str(n) for n in range(4, COUNT)]
    assert [(one.score, one.finish, one.note) for one in found] == [(1.0, "completed", "")] * 8
    assert found[0].path == "scripted+agentbench-server/v0.2/pets"
    turns = json.loads(found[0].text)
    assert [turn.get("seen") for turn in turns] == ["[(5,)]", None]
    assert databases.open == {}
    assert databases.cancelled == []
    assert {output["status"] for output in databases.judged} == {"completed"}


def test_wrong_answers_fail_each_in_its_own_way(databases: Official, basis: Basis) -> None:
    def agent(prompt: str) -> str:
        if "Pet5x" in prompt:  # never ends
            return "Action: Operation\n```sql\nSELECT 1\n```"
        return "Final Answer: without a line before it" if "Pet4" in prompt else "\nFinal Answer: x"

    found = {one.sample: one for one in evaluate(databases, basis, agent)}
    assert {one.score for one in found.values()} == {0.0}
    assert found["4"].finish == "agent validation failed"
    assert found["5"].finish == "task limit reached"
    assert found["6"].finish == "completed"


def test_a_long_conversation_whose_beginning_is_left_out(databases: Official, basis: Basis) -> None:
    def agent(prompt: str) -> str:
        done = prompt.count("```sql")
        if done < 3:
            return f"Action: Operation\n```sql\nSELECT {done}\n```"
        return expert(prompt.replace("```sql", "", 3))

    found = evaluate(databases, basis, agent)
    seen = [[turn.get("seen") for turn in json.loads(one.text)] for one in found]
    assert seen[0] == ["[(0,)]", "[(1,)]", "[(2,)]", "[(5,)]", None]
    assert found[0].score == 1


def test_a_task_that_gives_its_own_verdict(sums: Official, basis: Basis) -> None:
    def agent(prompt: str) -> str:
        if "go on" in prompt:
            number = int(prompt.partition("What is ")[2].partition(" ")[0])
            return f"Act: answer({number + 2 * (number != 5)})"
        return "think" if "What is" in prompt else "-"

    found = evaluate(sums, basis, agent)
    assert [one.score for one in found] == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert found[0].sample == "dev-001-sums-00004"
    assert [one.finish for one in found] == ["completed"] * 7 + ["unknown"]  # it never started
    assert sums.count("/calculate_overall") == 0


def test_functions_are_called(calls: Official, basis: Basis) -> None:
    found = evaluate(calls, basis, caller)
    assert [(one.score, one.finish) for one in found] == [(1.0, "completed")] * 8
    assert found[0].path == "scripted+agentbench-server/fc/pets"
    assert calls.open == {}
    assert len(calls.cancelled) == 1  # the sample that told the tools
    sent = [body["messages"][0] for path, body in calls.calls if path == "/interact"]
    assert sent[0]["tool_calls"][0]["function"]["arguments"].startswith('{"query": "')


def test_without_a_call_the_server_goes_on(calls: Official, basis: Basis) -> None:
    def agent(prompt: str) -> str:
        return caller(prompt) if prompt.count("assistant: ") > 1 else "let me see"

    assert {one.score for one in evaluate(calls, basis, agent)} == {1.0}


def test_a_full_context_is_told_where_the_protocol_can(
    databases: Official, calls: Official, basis: Basis
) -> None:
    wordy = expert, lambda prompt: caller(prompt) + " " * 400
    for official, agent in zip((databases, calls), wordy, strict=True):
        found = evaluate(official, basis, agent, context=330 if official is calls else 55)
        assert {(one.score, one.finish) for one in found} <= {
            (0.0, "agent context limit"),
            (1.0, "agent context limit"),  # the server judges what was done to the table
        }
        assert official.open == {}
    told = [body for path, body in databases.calls if path == "/interact"]
    assert told[-1]["agent_response"] == {"status": "agent context limit", "content": None}
    assert len(calls.cancelled) == 9


def test_rounds_of_ours_end_a_sample_and_free_its_place(databases: Official, basis: Basis) -> None:
    def agent(prompt: str) -> str:
        return "Action: Operation\n```sql\nSELECT 1\n```"

    found = evaluate(databases, basis, agent, rounds=2)
    assert {(one.score, one.finish) for one in found} == {(0.0, "task limit reached")}
    assert len(databases.cancelled) == 8
    assert databases.open == {}


def test_the_first_reply_waits_for_the_tables(databases: Official, basis: Basis) -> None:
    evaluate(databases, basis, expert, pause=0.2, live=1)
    moments = iter(databases.times)
    for path, moment in moments:
        if path == "/start_sample":
            following, then = next(moments)
            assert following == "/interact"
            assert then - moment >= 0.2


def test_pause_is_for_databases_of_the_text_protocol(databases: Official, calls: Official) -> None:
    databases.name = "dbbench-dev"
    assert environment(databases).pause == 0.5
    assert environment(databases, pause=1).pause == 1
    databases.name = "os-dev"
    assert environment(databases).pause == 0
    calls.name = "dbbench-dev"
    assert environment(calls).pause == 0


# What the judge, which evaluates answers on its own machine, is given.


@pytest.mark.parametrize(
    ("answer", "judged"),
    [
        (' ["a", 2]', ["a", 2]),
        (" 42", [" 42"]),
        ("('a', 'b')", ["a", "b"]),
        ("'ab'", ["a", "b"]),
        ("__import__('os').system('true')", ["__import__('os').system('true')"]),
        ("[1 + 1]", ["[1 + 1]"]),
        ("[f() for f in ()]", ["[f() for f in ()]"]),
        ("[1e999]", ["[1e999]"]),
        ("[" * 5000 + "]" * 5000, ["[" * 5000 + "]" * 5000]),
        ("'" * 30_000, ["'" * 30_000]),
        ("", [""]),
    ],
)
def test_answers_reach_the_judge_as_literals(answer: str, judged: list[Any]) -> None:
    assert ast.literal_eval(harmless(answer)) == judged


def test_no_answer_reaches_the_judge_as_code(databases: Official, basis: Basis) -> None:
    evaluate(databases, basis, lambda prompt: "\nFinal Answer: print('hello')")
    kinds = {output["result"]["type"]: output["result"]["answer"] for output in databases.judged}
    assert kinds["other"] == repr([" print('hello')"])
    assert all(output["history"] == [] for output in databases.judged)


# Bad times.


def test_taken_places_are_waited_for(databases: Official, basis: Basis) -> None:
    databases.capacity = 2
    notes: list[str] = []
    assert {one.score for one in evaluate(databases, basis, expert, notes=notes)} == {1.0}
    assert databases.most == 2
    assert any("status 406" in note and "waiting up to 600 s" in note for note in notes)


def test_a_place_that_never_frees_is_one_line(databases: Official, basis: Basis) -> None:
    databases.capacity = 0
    with pytest.raises(RunError, match=r"/start_sample: status 406: .*No workers available"):
        evaluate(databases, basis, expert, patience=0)


@pytest.mark.parametrize("path", ["/start_sample", "/interact", "/calculate_overall"])
@pytest.mark.parametrize(
    "fault",
    [
        "garbage{",
        "[" * 100_000,
        "[]",
        '{"session_id": true, "output": {}}',
        '{"session_id": SESSION, "output": {"status": "dancing"}}',
        '{"session_id": 77, "output": {"status": "running", "history": []}}',
        "501",
        "500",
        "drop",
        "redirect",
        "gzip",
        "huge",
    ],
)
def test_one_fault_costs_nothing(databases: Official, basis: Basis, path: str, fault: str) -> None:
    databases.faults[path] = ["", "", fault]
    found = evaluate(databases, basis, expert)
    assert [one.score for one in found] == [1.0] * 8
    assert databases.faults[path] == []
    assert databases.count("/start_sample") == 9  # one sample was played twice
    unknown = path == "/start_sample"  # whoever got no answer knows no session
    assert databases.open == {} or unknown


def test_a_session_that_the_server_forgot(databases: Official, basis: Basis) -> None:
    databases.faults["/interact"] = ["", "forget"]
    assert {one.score for one in evaluate(databases, basis, expert, live=1)} == {1.0}
    assert databases.count("/start_sample") == 9


@pytest.mark.parametrize(
    ("path", "fault", "says"),
    [
        ("/interact", "garbage\x1b[0m{", r"/interact: the server's answer is not understood: no"),
        ("/interact", "501", r'/interact: status 501: \{"detail": "so \\u001b|status 501'),
        ("/interact", "hang", r"/interact: no answer within 0\.3 s"),
        ("/start_sample", "hang", r"/start_sample: no answer within 0\.3 s"),
        ("/start_sample", "redirect", "sends us on to 'http://192.0.2.1/', which is not followed"),
        ("/interact", "huge", "larger than 8 MiB"),
        ("/interact", "drop", "the connection failed: RemoteProtocolError"),
    ],
)
def test_what_stays_broken_is_one_line(
    databases: Official, basis: Basis, path: str, fault: str, says: str
) -> None:
    databases.faults[path] = [fault] * 50
    with pytest.raises(RunError, match=says) as raised:
        evaluate(databases, basis, expert, timeout=0.3 if fault == "hang" else 60)
    assert str(raised.value).isprintable()
    assert raised.value.remedy
    assert databases.open == {} or path == "/start_sample"


def test_functions_one_fault_costs_nothing(calls: Official, basis: Basis) -> None:
    wrong = [
        '{"env_out": {"status": "running", "finish": true}}',
        '{"env_out": {"status": "running", "finish": false, "messages": []}}',
        '{"env_out": {"status": "running", "finish": false, "messages": [{"role": "me"}]}}',
        '{"env_out": {"status": "running", "finish": false, "messages": '
        '[{"role": "assistant", "content": "I said so"}]}}',
        '{"env_out": {"status": "running", "finish": false, "messages": '
        '[{"role": "user", "content": [{"type": "image_url"}]}]}}',
        '{"env_out": {"status": "cancelled", "finish": true}}',
        '{"env_out": {"status": "completed", "finish": true, "reward": "much"}}',
        '{"env_out": {"status": "running", "finish": false, "tools": 5, "messages": '
        '[{"role": "user", "content": "?"}]}}',
    ]
    for fault in wrong:
        calls.faults["/interact"] = ["", fault]
        assert {one.score for one in evaluate(calls, basis, caller)} == {1.0}, fault
        assert calls.faults["/interact"] == []
    assert calls.open == {}


def test_a_reward_beyond_one_is_refused(calls: Official, basis: Basis) -> None:
    calls.faults["/interact"] = [
        '{"env_out": {"status": "completed", "finish": true, "reward": 7}}'
    ]
    with pytest.raises(UserError, match=r"its reward is 7; a score must lie in 0\.\.1"):
        evaluate(calls, basis, caller)


@pytest.mark.parametrize("protocol", ["databases", "calls"])
def test_a_tasks_own_error(protocol: str, basis: Basis, request: pytest.FixtureRequest) -> None:
    official: Official = request.getfixturevalue(protocol)
    good = expert if protocol == "databases" else caller

    def agent(prompt: str) -> str:
        return "crash" if "Pet6 " in prompt else good(prompt)

    with pytest.raises(RunError, match=r"status 501: .*own mistake|the task failed at sample 6"):
        evaluate(official, basis, agent)
    found = {one.sample: one for one in evaluate(official, basis, agent, errors="fail")}
    assert (found.pop("6").score, {one.score for one in found.values()}) == (0.0, {1.0})
    assert official.open == {}


def test_what_was_begun_is_given_back_when_the_run_stops(
    databases: Official, calls: Official, basis: Basis
) -> None:
    for official, agent in ((databases, expert), (calls, caller)):
        for path in ("/start_sample", "/interact"):
            official.hanging.clear()
            official.released.clear()
            first = [""] if path == "/start_sample" and official is calls else []
            official.faults[path] = [*first, *["late"] * 8]
            with pytest.raises(asyncio.CancelledError):
                evaluate(official, basis, agent, stop_after=official.hanging.wait)
            assert official.open == {}
            official.faults.clear()


def test_nobody_is_told_more_than_the_protocol_has(
    databases: Official, basis: Basis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    evaluate(databases, basis, expert)
    for headers in databases.headers:
        assert "authorization" not in headers
        assert "cookie" not in headers
        assert "secret" not in str(headers)


# Before anything is played.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "ftp://x/api"}, "options.url: 'ftp://x/api' is no address"),
        ({"url": "127.0.0.1:5000"}, "is no address of a server"),
        ({"url": "http://[::1/api"}, "is no address of a server"),
        ({"url": "http://me:secret@127.0.0.1/api"}, "only host, port and path belong there"),
        ({"url": "http://127.0.0.1/api?token=x"}, "only host, port and path belong there"),
        ({"name": ""}, r"options.name: no task \(write the name"),
        ({"name": "a b"}, "'a b' is no name of a task"),
        ({"name": "cats"}, "the server has no samples of cats: .*Task does not exist"),
        ({"indices": [1, 99]}, r"options.indices: pets has no sample 99 \(it has 12, such as 0\)"),
        ({"indices": ["1"]}, "pets has no sample '1'"),
        ({"indices": {"test": []}}, "options.indices: no samples"),
        ({"url": "http://127.0.0.1:9/api"}, "http://127.0.0.1:9/api/get_indices: nobody answers"),
    ],
)
def test_bad_input_is_one_line(databases: Official, options: dict[str, Any], says: str) -> None:
    with pytest.raises(CqdHubError, match=says) as raised:
        environment(databases, **options)
    assert str(raised.value).isprintable()
    assert raised.value.remedy
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("answer", ['{"a": 1}', "null", "[1.5]", "[true]", "garbage", "404"])
def test_wrong_indices_are_one_line(databases: Official, answer: str) -> None:
    databases.faults["/get_indices"] = [answer]
    with pytest.raises(CqdHubError, match=r"not understood|has no samples"):
        environment(databases)


def test_splits_are_the_servers_or_the_users(databases: Official) -> None:
    assert {k: len(v) for k, v in environment(databases).samples().items()} == {"all": COUNT}
    chosen = environment(databases, indices={"dev": [3, 1], "test": [2]}).samples()
    assert {name: [s.id for s in split] for name, split in chosen.items()} == {
        "dev": ["3", "1"],
        "test": ["2"],
    }
    assert environment(databases).repeatable is False


def test_the_apis_folder_may_be_left_out() -> None:
    assert checked_url("http://localhost:5000/") == "http://localhost:5000/api"
    assert checked_url("https://x.org/bench/api/") == "https://x.org/bench/api"


def test_the_shipped_manifest(databases: Official) -> None:
    data = read_yaml(assets.folder("evals") / "agentbench" / "server.yaml")
    options = TaskServer.Options(**{**data["options"], "url": databases.url, "name": "pets"})
    assert TaskServer(options, Path("/")).kind == "agentbench-server/v0.2/pets"
