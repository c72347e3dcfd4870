"""The rules of play of each dialect, on a machine that is none (see `local`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cqd_hub.errors import RunError
from cqd_hub.evaluation.environments.agentbench_os import OperatingSystem, environment
from cqd_hub.evaluation.environments.agentbench_os.dialects import DIALECTS
from cqd_hub.evaluation.environments.agentbench_os.episode import reply_text
from cqd_hub.evaluation.episodes import (
    CONTEXT_FULL,
    ROUNDS_SPENT,
    Episode,
    Message,
    Observation,
    ToolCall,
    Verdict,
)
from tests.evaluation.environments.agentbench_os.gold import (
    acts,
    opened,
    play_all,
    play_nothing,
)
from tests.evaluation.environments.agentbench_os.local import LocalMachines
from tests.evaluation.environments.agentbench_os.upstream import write_samples

CHECKOUT = str(Path(__file__).parent / "checkout")
BROKEN = {"dev-00011", "std-007-count-00001"}
Use = Callable[[OperatingSystem], Coroutine[Any, Any, Any]]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalMachines:
    machines = LocalMachines(tmp_path)

    async def open_machines(*_: Any, **__: Any) -> LocalMachines:
        return machines

    monkeypatch.setattr(environment, "open_machines", open_machines)
    return machines


def using(use: Use, notes: list[str] | None = None, **options: Any) -> Any:
    """What *use* gives for an open environment with *options*."""

    async def run() -> Any:
        note = ([] if notes is None else notes).append
        environment = await opened({"data": CHECKOUT, **options}, note)
        try:
            return await use(environment)
        finally:
            await environment.close()

    return asyncio.run(run())


def playing(
    name: str, *replies: Message | tuple[str, ...], end: str = "", **options: Any
) -> tuple[list[Any], Episode]:
    """The turns that *replies* get on the sample *name*, and the closed episode."""

    async def play(environment: OperatingSystem) -> tuple[list[Any], Episode]:
        samples = {one.id: one for group in environment.samples().values() for one in group}
        episode = await environment.begin(samples[name])
        try:
            turns: list[Any] = []
            for reply in replies:
                message = reply if isinstance(reply, Message) else acts(environment, *reply)
                turns.append(await episode.step(message))
            if end:
                turns.append(await episode.end(end))
            return turns, episode
        finally:
            await episode.close()

    turns, episode = using(play, **options)
    return turns, episode


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_references_pass_and_doing_nothing_does_not(dialect: str) -> None:
    async def both(environment: OperatingSystem) -> tuple[dict[str, Verdict], dict[str, Verdict]]:
        samples = [
            one for group in environment.samples().values() for one in group if one.id not in BROKEN
        ]
        quick = [one for one in samples if one.id != "dev-00001"]
        return await play_all(environment, samples), await play_all(
            environment, quick, play_nothing
        )

    gold, nothing = using(both, dialect=dialect)
    assert len(gold) == 14
    assert {
        name: one for name, one in gold.items() if (one.score, one.status) != (1, "completed")
    } == {}
    assert {name: one for name, one in nothing.items() if one.score} == {}


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("dev-00000", "plum"),
        ("dev-00002", " welcome"),  # not stripped
        ("dev-00003", "4"),
        ("dev-00003", "three"),
        ("dev-00005", "There are 18 lines"),
        ("dev-00006", "fig"),
        ("dev-00007", "21K"),
        ("dev-00008", "done"),
        ("dev-00010", "z"),
        ("std-007-count-00000", "1"),
        ("std-007-count-00000", "two\0"),
    ],
)
def test_wrong_answers_fail(name: str, answer: str) -> None:
    (verdict,), _ = playing(name, ("answer", answer))
    assert (verdict.score, verdict.status) == (0, "completed")
    assert verdict.note.isprintable()


@pytest.mark.usefixtures("machines")
def test_the_shell_keeps_its_state_and_shows_both_streams() -> None:
    turns, episode = playing(
        "dev-00000",
        ("bash", "cd ~; x=5"),
        ("bash", "echo $x; echo oops >&2; pwd | wc -l"),
        ("bash", "seq 1000"),
        ("answer", " quince "),
    )
    first, second, third, verdict = turns
    assert first == Observation((Message("user", "The output of the OS is empty."),))
    assert second.messages[0].content == "The output of the OS:\n\n5\noops\n1\n"
    cut = third.messages[0].content.removeprefix("The output of the OS:\n\n")
    assert cut.endswith("\n[truncated because the output is too long]")
    assert len(cut) == 780 + len("\n[truncated because the output is too long]")
    assert verdict == Verdict(1.0, "completed", "accepted 'quince'")
    assert episode.opening[-1].content.endswith(
        "Which word stands in ~/note? Answer with that word."
    )


def test_shell_and_scripts_start_where_the_dialect_says(machines: LocalMachines) -> None:
    for dialect, folder in (("agentbench-v0.2", "/"), ("cycleqd", "/"), ("agentbench-fc", "")):
        (turn,), _ = playing("dev-00000", ("bash", "pwd"), dialect=dialect)
        folder = folder or str(machines.started[-1].home)
        assert turn.messages[0].content == f"The output of the OS:\n\n{folder}\n"


def test_long_output_of_exactly_the_limit_is_whole() -> None:
    assert reply_text("x" * 800) == "The output of the OS:\n\n" + "x" * 800
    assert len(reply_text("x" * 801)) < 860


def test_terminal_sequences_are_left_out() -> None:
    assert reply_text("\x1b[1;31mred\x1b[0m\x1b]0;title\x07\x1b[?2004h\x07") == (
        "The output of the OS:\n\nred"
    )


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("status", [ROUNDS_SPENT, CONTEXT_FULL])
def test_the_end_of_rounds_or_context_fails_except_in_cycleqd(status: str) -> None:
    work = ("bash", "mkdir ~/made && touch ~/made/done")
    for dialect in DIALECTS:
        (_, verdict), _ = playing("dev-00008", work, end=status, dialect=dialect)
        assert (verdict.score, verdict.status) == (float(dialect == "cycleqd"), status)


@pytest.mark.usefixtures("machines")
def test_a_reply_without_an_act_ends_a_text_dialect() -> None:
    nothing = Message("assistant", "I would count them.")
    (verdict,), _ = playing("dev-00003", nothing)
    assert (verdict.score, verdict.status) == (0, "agent invalid action")
    work = ("bash", "mkdir ~/made && touch ~/made/done")
    (_, verdict), _ = playing("dev-00008", work, nothing, dialect="cycleqd")
    assert (verdict.score, verdict.status) == (1, "agent invalid action")


@pytest.mark.usefixtures("machines")
def test_with_tools_a_reply_that_calls_nothing_is_told_so() -> None:
    calls = (ToolCall("fly", {"to": "moon"}, "a"), ToolCall("bash_action", {"script": "ls"}, "b"))
    turns, _ = playing(
        "dev-00000",
        Message("assistant", "Act: answer(quince)"),
        Message("assistant", "", calls),
        Message("assistant", "", (ToolCall("bash_action", {"script": "echo hi"}, "c"),)),
        ("answer", "quince"),
        dialect="agentbench-fc",
    )
    assert turns[0].messages[0].role == "user"
    assert (turns[1].messages[0].role, turns[1].messages[0].call) == ("tool", "a")
    assert turns[2].messages == (Message("tool", "The output of the OS:\n\nhi\n", call="c"),)
    assert turns[3].score == 1


@pytest.mark.usefixtures("machines")
def test_a_command_out_of_time_ends_cycleqds_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(DIALECTS["cycleqd"]), "command_seconds", 0.3)
    (verdict,), _ = playing("dev-00003", ("bash", "sleep 20"), dialect="cycleqd")
    assert (verdict.score, verdict.status) == (0, "completed")
    assert verdict.note == "no answer"
    late = ("bash", "mkdir ~/made && touch ~/made/done && sleep 20")
    (verdict,), _ = playing("dev-00008", late, dialect="cycleqd")
    assert verdict.score == 1


@pytest.mark.usefixtures("machines")
def test_only_some_dialects_mind_a_broken_set_up() -> None:
    notes: list[str] = []
    turns, _ = playing("dev-00011", ("answer", ""), notes=notes)
    assert turns == [Verdict(0.0, "unknown", "init script 1 exited with 3: 'it is the disk'")]
    assert notes == [
        "agentbench_os: dev-00011 cannot be set up and is scored 0, unknown: init script 1 exited "
        "with 3: 'it is the disk'"
    ]
    (verdict,), _ = playing("dev-00011", ("answer", ""), dialect="cycleqd")
    assert verdict.score == 1
    assert verdict.note.startswith("init script 1 exited with 3")


@pytest.mark.parametrize("works", [True, False])
def test_a_play_lost_is_to_blame_only_while_a_fresh_machine_works(
    machines: LocalMachines, works: bool
) -> None:
    async def lose(environment: OperatingSystem) -> Verdict | None:
        sample = environment.samples()["dev"][0]
        episode = await environment.begin(sample)
        try:
            with pytest.raises(RunError, match="dev-00000: a machine was lost") as lost:
                await episode.step(acts(environment, "bash", "echo LOSE THE MACHINE"))
        finally:
            await episode.close()
        machines.working = works
        return await environment.lost(sample, lost.value)

    verdict = using(lose)
    assert len(machines.started) == 2  # the last one to see whether a machine works at all
    if works:
        assert verdict == Verdict(0, "task error", "the machine was lost twice: it was asked to go")
    else:
        assert verdict is None


@pytest.mark.usefixtures("machines")
def test_what_was_lost_otherwise_is_nobodys_doing() -> None:
    async def lost(environment: OperatingSystem) -> Verdict | None:
        return await environment.lost(environment.samples()["dev"][0], RunError("disk full"))

    assert using(lost) is None


@pytest.mark.usefixtures("machines")
def test_a_set_up_that_destroys_its_machine_is_named_once(tmp_path: Path) -> None:
    record = {"description": "?", "start": "echo LOSE THE MACHINE", "evaluation": {"match": "x"}}
    (tmp_path / "dev.json").write_text(json.dumps([record]))

    async def lost(environment: OperatingSystem) -> Verdict | None:
        (sample,) = environment.samples()["dev"]
        for _ in range(2):
            with pytest.raises(RunError, match="a machine was lost") as error:
                await environment.begin(sample)
            verdict = await environment.lost(sample, error.value)
        return verdict

    notes: list[str] = []
    verdict = using(lost, notes, data=str(tmp_path))
    assert (verdict.score, verdict.status) == (0, "unknown")
    assert len([note for note in notes if "dev-00000 cannot be set up" in note]) == 1


@pytest.mark.usefixtures("machines")
def test_cycleqds_samples_bring_their_own_conversation(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "samples.json")
    turns, episode = playing("samples-00041", ("answer", "1"), data=str(path), dialect="cycleqd")
    assert turns[0].score == 1
    assert episode.opening[-1].content.endswith(
        "machine with another problem:\n\nHow many files are in ~/five?"
    )
    _, episode = playing("samples-00041", data=str(path), dialect="cycleqd", prompts=str(path))
    assert episode.opening[-1].content == "Another one: How many files are in ~/five?"


@pytest.mark.usefixtures("machines")
def test_the_kind_names_dialect_prompts_and_machines() -> None:
    async def kind(environment: OperatingSystem) -> tuple[str, str]:
        return environment.kind, environment.guarantees

    assert using(kind, prompts="none") == (
        "agentbench-v0.2/no-prompts/local",
        "nothing: for the tests' own scripts",
    )
