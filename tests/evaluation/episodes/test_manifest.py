"""From a recipe's skill to an environment, and what is refused on the way, in one line each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cqd_hub.errors import UserError
from cqd_hub.evaluation.episodes.skill import EpisodeSkill
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.genome import Basis
from tests.evaluation import toy_tasks
from tests.evaluation.episodes.common import manifest, recipe


@pytest.fixture(scope="module")
def tokenizer(basis: Basis) -> Any:
    return AutoTokenizer.from_pretrained(basis.base.checkpoint.path)


Load = Callable[..., EpisodeSkill]


@pytest.fixture
def load(tmp_path: Path, tokenizer: Any) -> Load:
    def loaded(notes: list[str] | None = None, **skill: Any) -> EpisodeSkill:
        note = (notes if notes is not None else []).append
        found = load_skills(recipe(**skill), tmp_path, tokenizer, note=note)["one"]
        assert isinstance(found, EpisodeSkill)
        return found

    return loaded


def refused(load: Load, **skill: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(**skill)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_found_by_stem_by_key_and_by_path(tmp_path: Path, load: Load) -> None:
    manifest(tmp_path)
    (tmp_path / "deeper").mkdir()
    path = manifest(tmp_path / "deeper", name="file", task="named")
    assert [load(task=task).name for task in ("letters", "named", "deeper/file.yaml")] == [
        "one"
    ] * 3
    assert load(task=str(path)).record() == {"environment": "toy.py:Letters", "kind": ""}


def test_an_lm_eval_task_lies_beside_it(tmp_path: Path, tokenizer: Any) -> None:
    toy_tasks.generating(tmp_path, name="sums")
    manifest(tmp_path, task="letters")
    made = recipe(task="sums", metric="exact_match")
    skills = load_skills(made, tmp_path, tokenizer)
    assert skills["one"].record() == {"metric": "exact_match"}
    assert skills["two"].record()["environment"] == "toy.py:Letters"


def test_an_lm_eval_task_takes_no_options(tmp_path: Path, tokenizer: Any) -> None:
    toy_tasks.generating(tmp_path, name="sums")
    manifest(tmp_path)
    made = recipe(task="sums", metric="exact_match", options={"a": 1})
    with pytest.raises(UserError, match=r"skills\.one\.options: an lm-eval task takes no options"):
        load_skills(made, tmp_path, tokenizer)


def test_the_recipes_options_come_last(tmp_path: Path, load: Load) -> None:
    manifest(tmp_path, options={"count": 5, "dialect": "long"})
    options = load(options={"count": 7})._environment.options
    assert (options.count, options.dialect) == (7, "long")  # type: ignore[attr-defined]


def test_relative_paths_start_where_they_are_written(tmp_path: Path, load: Load) -> None:
    manifest(tmp_path)
    (tmp_path / "beside.txt").write_text("")
    for given, expected in (
        ("beside.txt", str(tmp_path / "beside.txt")),
        ("./nothing.txt", str(tmp_path / "nothing.txt")),
        ("nothing.txt", "nothing.txt"),
    ):
        options = load(options={"log": given})._environment.options
        assert options.log == expected  # type: ignore[attr-defined]
    (tmp_path / "long").mkdir()  # a word of the environment's is no path
    assert load(options={"dialect": "long"})._environment.options.dialect == "long"  # type: ignore[attr-defined]


class TestRefusals:
    def test_unknown_environment(self, tmp_path: Path, load: Load) -> None:
        path = manifest(tmp_path)
        edit(path, "toy.py:Letters", "agentbench_so")
        line = refused(load)
        assert line.startswith(f"{path}:")
        assert "environment: none is called 'agentbench_so' (did you mean 'agentbench_os'?)" in line
        edit(path, "agentbench_so", "xyz")
        assert "(use one of agentbench_os, " in refused(load)

    def test_unknown_key_option_and_value(self, tmp_path: Path, load: Load) -> None:
        path = manifest(tmp_path, options={"dialect": "lang"})
        number = next(n for n, text in enumerate(path.open(), 1) if "dialect" in text)
        expected = f"{path}:{number}:3: options.dialect: input should be 'short' or 'long'"
        assert refused(load) == f"{expected}, not 'lang' (did you mean 'long'?)"
        edit(path, "dialect: lang", "dialekt: long")
        assert refused(load).endswith("options.dialekt: unknown key (did you mean 'dialect'?)")
        edit(path, "dialekt: long", "dialect: long")
        edit(path, "max_new_tokens", "max_new_token")
        assert refused(load).endswith("max_new_token: unknown key (did you mean 'max_new_tokens'?)")

    def test_options_of_the_recipe(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        line = refused(load, options={"dialect": "lang"})
        assert line.startswith("skills.one.options: options.dialect: input should be 'short'")
        path = manifest(tmp_path)
        path.write_text(re.sub(r"  log:\s+\S+\n", "  count: 5\n", path.read_text()))
        assert refused(load) == "skills.one.options: options.log: is missing (add it)"

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ("toy.py", "toys.py", "environment: no such file: "),
            (
                "Letters",
                "Leters",
                "environment: toy.py has no Environment called 'Leters' (it has ",
            ),
            ("toy.py:Letters", "toy.py:Path", "has no Environment called 'Path'"),
            ("toy.py:Letters", "toy.py:Unmade", "cannot be made: ValueError: not today"),
            ("format: plain", "format: chatty", "format: input should be 'chat' or 'plain'"),
            ("max_new_tokens: 8", "max_new_tokens: 0", "max_new_tokens: input should be greater"),
            ("max_new_tokens: 8", "top_p: 0", "top_p: input should be greater than 0, not 0"),
            ("max_new_tokens: 8", "stop: ['']", "stop.0: string should have at least 1 character"),
        ],
    )
    def test_a_bad_manifest(
        self, tmp_path: Path, load: Load, old: str, new: str, says: str
    ) -> None:
        edit(manifest(tmp_path), old, new)
        assert says in refused(load)

    def test_a_file_that_cannot_be_imported(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        (tmp_path / "toy.py").write_text("import nothing_of_the_kind\n")
        assert "toy.py cannot be imported: ModuleNotFoundError" in refused(load)

    def test_two_of_one_name(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        (tmp_path / "deeper").mkdir()
        manifest(tmp_path / "deeper")
        assert "skills.one.task: two manifests are called 'letters'" in refused(load)

    def test_no_such_file(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        assert refused(load, task="no.yaml").endswith("no.yaml: no such file (check the path)")

    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            ({"metric": "acc"}, "metric"),
            ({"num_fewshot": 2}, "num_fewshot"),
            ({"chat_template": True}, "chat_template"),
        ],
    )
    def test_what_means_nothing_for_episodes(
        self, tmp_path: Path, load: Load, settings: dict[str, Any], key: str
    ) -> None:
        manifest(tmp_path)
        assert refused(load, **settings).startswith(f"skills.one.{key}: means nothing for episodes")

    def test_what_an_environment_refuses_names_skill_and_option(
        self, tmp_path: Path, load: Load
    ) -> None:
        line = refused(load, task="agentbench_os")
        assert line.startswith("skills.one.options.data: needs data, which is not part of cqd-hub")
        line = refused(load, task="mbpp_plus", options={"data": "data/dev.jsonl"})
        file = tmp_path / "data" / "dev.jsonl"
        assert line.startswith(f"skills.one.options.data: no such file or folder: {file} (name a")
        path = tmp_path / "coding.yaml"
        path.write_text("environment: evalplus\noptions:\n  data: nothing.jsonl\n")
        line = refused(load, task="coding")
        assert line.startswith(f"skills.one: {path}:3:3: options.data: no such file or folder: ")

    def test_the_hub_is_not_asked_in_silence(
        self, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        asked = "skills.one.options.data: there is no folder ann/bench, so the Hub is asked for it"
        for given, expected in (("ann/bench", [asked]), ("hf://datasets/ann/bench", [])):
            notes: list[str] = []
            with pytest.raises(UserError, match="ann/bench: is not in the cache"):
                load(notes, task="mbpp_plus", options={"data": given})
            assert notes == expected

    def test_no_samples_and_twins(
        self, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        manifest(tmp_path, options={"count": 0})
        assert (
            refused(load)
            == "skills.one.options: the environment has no samples (name other data, or mend "
            "the environment's samples())"
        )
        manifest(tmp_path)
        toy = tmp_path / "toy.py"
        toy.write_text(toy.read_text().replace('f"{split}-{n}",', 'f"same-{n}",'))
        assert "skills.one.task: two samples are called 'same-0'" in refused(load)

    def test_a_chat_without_a_template(self, tmp_path: Path, tokenizer: Any) -> None:
        manifest(tmp_path, format="chat")
        bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
        bare.chat_template = None
        with pytest.raises(UserError, match=r"skills\.one\.task: the base has no chat template"):
            load_skills(recipe(), tmp_path, bare)


class TestSamples:
    def test_the_environments_own_splits(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        samples = load().samples
        assert {split: len(found) for split, found in samples.items()} == {
            "optimisation": 6,
            "validation": 6,
            "test": 6,
        }

    def test_splits_and_limits_of_the_recipe(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        splits = {"optimisation": "test[:2]", "validation": "test[2:4]", "test": "optimisation"}
        samples = load(splits=splits, samples={"test": 3}).samples
        assert [one.id for one in samples["optimisation"]] == ["test-0", "test-1"]
        assert [one.id for one in samples["test"]] == [f"optimisation-{n}" for n in range(3)]

    def test_splits_that_are_not_used_are_named(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path, options={"count": 12})
        toy = tmp_path / "toy.py"
        names = '("optimisation", "validation", "test")'
        toy.write_text(toy.read_text().replace(names, '("dev", "std", "train")'))
        notes: list[str] = []
        assert {one.id[:3] for one in load(notes).samples["optimisation"]} == {"dev"}
        line = "skills.one: only dev is used (12 samples), not std (12), train (12); `splits` can"
        assert [note for note in notes if note.startswith(line)]
        chosen = {"optimisation": "dev[::2] + std", "validation": "dev[1::4]", "test": "dev[3::4]"}
        notes.clear()
        samples = load(notes, splits=chosen).samples
        assert [len(found) for found in samples.values()] == [18, 3, 3]
        assert [note for note in notes if "skills.one" in note] == []
        toy.write_text(toy.read_text().replace('"dev", "std"', '"dev", "test"'))
        assert {one.id[:4] for one in load(notes).samples["validation"]} == {"test"}
        assert [note for note in notes if "skills.one" in note] == []

    def test_a_question_serves_one_purpose(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        toy = tmp_path / "toy.py"
        text = toy.read_text().replace("has {split} {n}?", "has {split if n > 1 else 'one'} {n}?")
        toy.write_text(text)
        notes: list[str] = []
        samples = load(notes).samples
        assert [len(samples[split]) for split in ("optimisation", "validation", "test")] == [
            4,
            4,
            6,
        ]
        line = "skills.one: left out samples whose question another split holds: 4"
        assert line in notes
        manifest(tmp_path, options={"count": 3})
        toy.write_text(text)
        assert "has 1 samples for validation whose questions no other split holds" in refused(load)


class TestFingerprint:
    def test_equal_for_equal(self, tmp_path: Path, load: Load) -> None:
        manifest(tmp_path)
        assert load().fingerprint == load().fingerprint

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("max_new_tokens: 8", "max_new_tokens: 9"),
            ("max_new_tokens: 8", "max_new_tokens: 8\nprefill: x"),
            ("format: plain", "format: chat"),
            ("options:", "options:\n  dialect: long"),
        ],
    )
    def test_of_the_manifest(self, tmp_path: Path, load: Load, old: str, new: str) -> None:
        path = manifest(tmp_path)
        before = load().fingerprint
        edit(path, old, new)
        assert load().fingerprint != before

    def test_of_the_environments_own_file_and_samples(self, tmp_path: Path, load: Load) -> None:
        path = manifest(tmp_path)
        before = load().fingerprint
        toy = tmp_path / "toy.py"
        toy.write_text(toy.read_text() + "\n# judged otherwise\n")
        changed = load().fingerprint
        edit(path, "options:", "options:\n  fault: test-0\n  faulty: keep")
        assert len({before, changed, load().fingerprint}) == 3
