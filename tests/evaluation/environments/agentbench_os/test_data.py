"""Reading a checkout, files of it, CycleQD's samples; and malformed files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments.agentbench_os import OperatingSystem
from cqd_hub.evaluation.environments.agentbench_os.data import read_samples
from cqd_hub.evaluation.environments.agentbench_os.dialects import DIALECTS, Dialect
from cqd_hub.evaluation.environments.agentbench_os.faults import digest, fault_of
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem, Script
from cqd_hub.evaluation.episodes import Sample
from tests.evaluation.environments.agentbench_os.upstream import write_samples

CHECKOUT = Path(__file__).parent / "checkout"
REAL = Path(__file__).parents[5] / "shared" / "data" / "agentbench" / "os_interaction"


V02, FC = DIALECTS["agentbench-v0.2"], DIALECTS["agentbench-fc"]


def read(data: object, folder: Path = Path("/"), dialect: Dialect = V02) -> dict[str, list[Sample]]:
    return read_samples(str(data), folder, dialect, where="options.data")


def problem(sample: Sample) -> Problem:
    return Problem.model_validate(sample.document)


@pytest.mark.parametrize("data", [".", "data/os_interaction"])
def test_a_checkout_gives_all_splits_with_lasting_ids(data: str) -> None:
    samples = read(data, CHECKOUT)
    assert {split: [one.id for one in group] for split, group in samples.items()} == {
        "dev": [f"dev-{index:05d}" for index in range(12)],
        "std": ["std-001-count-00000", "std-007-count-00000", "std-007-count-00001"],
        "train": ["train_0317-00000"],
    }
    assert samples["dev"][0].question == "Which word stands in ~/note? Answer with that word."


@pytest.mark.parametrize("name", ["data/dev.json", "data/7/count.json", "train_0317/training.json"])
def test_one_file_of_a_checkout_means_the_same_samples(name: str) -> None:
    folder = CHECKOUT / "data" / "os_interaction"
    whole = {one.id: one for group in read(CHECKOUT).values() for one in group}
    (group,) = read(name, folder).values()
    assert group
    assert all(whole[one.id] == one for one in group)


def test_a_folder_of_loose_files_is_read_whole_and_a_file_in_it_alone(tmp_path: Path) -> None:
    for name in ("data/dev.json", "train_0317/training.json"):
        shutil.copy(CHECKOUT / "data" / "os_interaction" / name, tmp_path)
    assert sorted(read(tmp_path)) == ["dev", "train"]
    assert sorted(read(tmp_path / "dev.json")) == ["dev"]
    shutil.copy(tmp_path / "dev.json", tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in json.loads((tmp_path / "dev.json").read_text()))
    )
    mine = read(tmp_path / "mine.jsonl")["mine"]
    assert [one.id for one in mine][:2] == ["mine-00000", "mine-00001"]


def test_scripts_come_from_the_checkout_else_from_stock_else_are_a_fault() -> None:
    samples = {one.id: one for group in read(CHECKOUT).values() for one in group}
    check = problem(samples["std-007-count-00000"]).check[1]
    assert check is not None
    assert check.language == "python"
    assert "checkout's own" in check.code
    stock = Script(language="python", code="exit(1)", stock="integer-match")
    assert problem(samples["std-001-count-00000"]).check[1] == stock
    assert problem(samples["dev-00003"]).check == (None, stock)
    assert "wellcome" in problem(samples["dev-00002"]).init[0].code
    faults = {name: one.fault for name, one in samples.items() if one.fault}
    assert faults == {"std-007-count-00001": "its script check/nowhere.sh is not with the data"}


def test_a_create_that_is_a_list_sets_nothing_up() -> None:
    sample = read(CHECKOUT)["dev"][4]
    assert problem(sample).init == ()


def test_scripts_outside_of_the_data_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("token")
    folder = tmp_path / "os_interaction"
    folder.mkdir()
    record = {"description": "?", "evaluation": {"check": {"file": "../../secret"}}}
    (folder / "dev.json").write_text(json.dumps([record]))
    (sample,) = read(folder)["dev"]
    assert sample.fault
    assert "token" not in json.dumps(sample.document)


def test_cycleqds_samples(tmp_path: Path) -> None:
    (sample,) = read(write_samples(tmp_path / "samples.json"))["samples"]
    assert sample.id == "samples-00041"
    assert sample.question == "How many files are in ~/five?"
    played = problem(sample)
    assert played.check[0] is None
    assert played.example == Script(code="ls ~/five | wc -l")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("dev.json", "[{", "dev.json:1: not JSON"),
        ("dev.json", "[3]", "sample 0: is no object"),
        ("dev.json", '[{"description": "x"}]', "lacks 'evaluation'"),
        ("dev.json", '[{"description": "x", "evaluation": {}}]', "needs match or check"),
        ("dev.json", '[{"description": 3, "evaluation": {"match": "x"}}]', "description: "),
        ("dev.json", '[{"description": "x", "evaluation": {"check": {}}}]', "lacks 'code'"),
        ("dev.json", '[{"description": "x", "evaluation": 3}]', "sample 0: is malformed"),
        (
            "dev.json",
            '[{"description": "x", "evaluation": {"check": {"code": "", "language": "c"}}}]',
            "check.0.language: ",
        ),
        (
            "dev.json",
            '[{"description": "x", "evaluation": {"check": {"code": "", "language": "stock"}}}]',
            "check.0.language: Input should be 'bash' or 'python'",
        ),
        (
            "dev.json",
            '[{"description": "x", "evaluation": {"match": {"regex": "("}}}]',
            "match.regex: not a regular expression: missing )",
        ),
        ("dev.json", '[{"problem": [], "index": 0}]', "lacks 'config'"),
        ("samples.pkl", "\x80", "pickles are not read"),
    ],
)
def test_malformed_files_are_one_line(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"os_interaction.*\(name the file itself"):
        read(tmp_path)


def test_a_fault_is_known_by_the_reference_command_however_it_is_indented() -> None:
    def asked(command: str) -> Problem:
        fields: dict[str, Any] = {"description": "?", "check": [None]}
        return Problem(**fields, example=Script(code=command))

    assert "counts its own processes" in fault_of(asked("#!/bin/bash\n\nps -A | wc -l\n"), V02)
    assert not fault_of(asked("ps -A | wc -c"), V02)
    assert digest("a  b\n") == digest("a b")


def test_another_image_is_a_fault_where_images_are_heeded() -> None:
    problem = Problem(description="?", check=(Script(code="true"),), image="packages")
    assert "machine image packages" in fault_of(problem, FC)
    assert not fault_of(problem, V02)


def test_the_public_files() -> None:
    if not REAL.is_dir():
        pytest.skip(f"AgentBench's public files are not in {REAL}")
    samples = read(REAL)
    assert {split: len(group) for split, group in samples.items()} == {"dev": 26, "train": 1000}
    faults = {one.id: one.fault for one in samples["dev"] if one.fault}
    assert sorted(faults) == ["dev-00003", "dev-00005", "dev-00008", "dev-00025"]
    assert "decimal size" in faults["dev-00008"]
    assert "init/stock-log.sh" in faults["dev-00025"]
    assert problem(samples["dev"][10]).init == ()
    numbers = {int(one.id[-5:]) for one in samples["train"] if one.fault}
    assert numbers == {147, 242, 252, 318, 683, 787, 934, 943, 948}
    with_tools = {int(one.id[-5:]) for one in read(REAL, dialect=FC)["train"] if one.fault}
    assert numbers - with_tools == {318, 787, 943}
    assert all(problem(one).check[0] is None for one in samples["train"])


def test_samples_that_need_users_are_faulty_where_root_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user than root, to whom nobody granted ids."""
    records = [
        {"description": "Who owns it?", "create": {"init": {"code": init, "language": "bash"}}}
        | {"evaluation": {"match": "x"}}
        for init in ("useradd mo && chown mo ~/a", "echo supper > ~/a", "apt update -q")
    ]
    (tmp_path / "own.json").write_text(json.dumps(records))

    def faults(machines: str = "auto") -> list[bool]:
        options = OperatingSystem.Options(data="own.json", machines=machines)  # type: ignore[arg-type]
        (samples,) = OperatingSystem(options, tmp_path).samples().values()
        return ["needs users besides root" in one.fault for one in samples]

    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert faults() == [True, False, True]
    assert faults("docker") == [False, False, False]
