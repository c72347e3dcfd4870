"""What the model is told, and by whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqd_hub.assets import folder
from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments.agentbench_os import OperatingSystem
from cqd_hub.evaluation.environments.agentbench_os.grammar import Bash, Commit, parse_text
from cqd_hub.evaluation.environments.agentbench_os.prompts import no_prompts, own_prompts
from cqd_hub.evaluation.environments.agentbench_os.upstream import upstream_prompts
from cqd_hub.evaluation.episodes.manifest import find_manifest, load_manifest
from tests.evaluation.environments.agentbench_os.upstream import write_checkout, write_samples

CHECKOUT = str(Path(__file__).parent / "checkout")


def test_our_own_example_speaks_the_grammar() -> None:
    replies = [one.content for one in own_prompts(tools=False).opening if one.role == "assistant"]
    assert [type(parse_text(reply)) for reply in replies] == [Bash, Commit]
    assert own_prompts(tools=False).kind == "own-prompts"
    names = [tool.name for tool in own_prompts(tools=True).tools]
    assert names == ["bash_action", "finish_action", "answer_action"]


def test_none_is_nothing_but_the_problem() -> None:
    prompts = no_prompts(tools=False)
    assert (prompts.opening, prompts.before, prompts.tools) == ((), "", ())
    assert no_prompts(tools=True).tools


def test_text_is_read_from_a_checkout_without_running_it(tmp_path: Path) -> None:
    prompts = upstream_prompts(write_checkout(tmp_path, tools=False), tools=False, where="x")
    assert [one.role for one in prompts.opening] == ["user", "assistant", "user", "assistant"]
    assert prompts.opening[0].content.startswith("Do as told.\n\nAct: bash")
    assert prompts.opening[0].content.endswith("\n\nThe problem is: how many colours has a flag?")
    assert prompts.opening[2].content == "The output of the OS:\nred white"
    assert prompts.before == "Another one: "
    assert prompts.kind.startswith("upstream-prompts-")


def test_tools_are_read_from_a_checkout(tmp_path: Path) -> None:
    prompts = upstream_prompts(write_checkout(tmp_path, tools=True), tools=True, where="x")
    assert [(one.role, one.content) for one in prompts.opening] == [("system", "Call something.")]
    assert (prompts.before, prompts.no_call) == ("It is this: ", "A call, please.")
    assert prompts.bad_call == "No such call."
    assert [tool.name for tool in prompts.tools] == ["bash_action", "answer_action"]
    assert prompts.tools[0].parameters["additionalProperties"] is False


def test_text_is_read_from_cycleqds_samples(tmp_path: Path) -> None:
    prompts = upstream_prompts(write_samples(tmp_path / "s.json"), tools=False, where="x")
    assert [one.role for one in prompts.opening] == ["user", "assistant"]
    assert prompts.before == "Another one: "


def test_other_words_are_another_kind(tmp_path: Path) -> None:
    first = upstream_prompts(write_samples(tmp_path / "s.json"), tools=False, where="x")
    second = upstream_prompts(write_checkout(tmp_path / "c", tools=False), tools=False, where="x")
    assert first.kind != second.kind


@pytest.mark.parametrize("tools", [True, False])
def test_the_wrong_branch_is_named(tmp_path: Path, tools: bool) -> None:
    checkout = write_checkout(tmp_path, tools=not tools)
    with pytest.raises(UserError, match=r"branch v0\.2" if not tools else "main"):
        upstream_prompts(checkout, tools=tools, where="x")


def test_no_checkout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prompts can be read from .*task\.py"):
        upstream_prompts(tmp_path, tools=False, where="x")
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(UserError, match="no samples of CycleQD's"):
        upstream_prompts(tmp_path / "s.json", tools=False, where="x")


def options(**given: object) -> OperatingSystem.Options:
    return OperatingSystem.Options.model_validate({"data": CHECKOUT, **given})


@pytest.mark.parametrize("prompts", ["own", "none"])
def test_faithful_refuses_prompts_that_are_not_upstreams(prompts: str) -> None:
    with pytest.raises(UserError, match="faithful: true needs upstream's prompts"):
        OperatingSystem(options(faithful=True, prompts=prompts), Path("/"))


def test_faithful_takes_upstreams(tmp_path: Path) -> None:
    write_checkout(tmp_path, tools=False)
    OperatingSystem(options(faithful=True, prompts=str(tmp_path)), Path("/"))


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("agentbench_os", "agentbench-v0.2"),
        ("agentbench_os_fc", "agentbench-fc"),
        ("agentbench_os_cycleqd", "cycleqd"),
    ],
)
def test_the_shipped_manifests(name: str, dialect: str) -> None:
    place = find_manifest(name, [folder("evals")], Path("/"), "skills.os")
    assert place is not None
    given = {"data": "checkout"}
    environment = load_manifest(*place, given, Path(CHECKOUT).parent, "skills.os").environment
    assert isinstance(environment, OperatingSystem)
    assert environment.options.dialect == dialect
    assert environment.rounds == (5 if dialect == "cycleqd" else 8)
    with pytest.raises(UserError, match="needs data"):
        load_manifest(*place, {}, Path("/"), "skills.os")


def test_without_data_it_says_where_they_are() -> None:
    with pytest.raises(UserError, match=r"needs data.*THUDM/AgentBench"):
        OperatingSystem(options(data=None), Path("/"))
