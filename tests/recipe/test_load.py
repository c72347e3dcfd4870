from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from cqd_hub.errors import UserError
from cqd_hub.recipe import Recipe, Strict, load_yaml, read_yaml

GOOD = """\
name: run
base: models/base
experts: {one: a, two: b}
skills:
  first: {task: t1, metric: acc}
  second: {task: t2, metric: acc}
"""


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_yaml(folder / "r.yaml", Recipe, overrides)


def refused(folder: Path, text: str, *overrides: str) -> str:
    """The error without the folder it is in; always one line."""
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    assert caught.value.exit_code == 2
    line = str(caught.value).replace(f"{folder}/", "")
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("text", "where", "says", "remedy"),
    [
        ("sede: 1", "7:1", "sede: unknown key", "did you mean 'seed'?"),
        ("search: {childern: 3}", "7:10", "search.childern: unknown key", "'children'"),
        ("variation:\n  mutation:\n    wmax: 1", "9:5", "variation.mutation.wmax", "'w_max'"),
        ("search: {archive: {kind: grid, binz: 3}}", "7:32", "search.archive.binz", "'bins'"),
        (
            "search: {archive: {kind: novelty, capasity: 3}}",
            "7:35",
            "search.archive.capasity: unknown key",
            "'capacity'",
        ),
        (
            "search: {archive: {kind: grid, capacity: 3}}",
            "7:32",
            "search.archive.capacity: unknown key",
            "known keys: bins, bounds, clip, kind",
        ),
        ("search: {archive: {kind: gird}}", "7:10", "search.archive: kind must be one of", "gird"),
        ("samples: {test: 1}", "7:11", "samples.test: input should be greater", "not 1"),
        ("seed: -1", "7:1", "seed: input should be greater than or equal to 0, not -1", ""),
        ("seed: three", "7:1", "seed: input should be a valid integer", "not 'three'"),
        ("search:", "7:1", "search: needs keys and values under it, not null", ""),
        ("search: [1]", "7:1", "search: needs keys and values under it", ""),
        ("genome: {rank: ful}", "7:10", "a valid integer or be 'full'", "not 'ful'"),
        ("evaluation: {sandbox: none}", "7:14", "'auto', 'bubblewrap', 'landlock' or", ""),
        ("preset: papr", "7:1", "'default', 'paper' or 'released-code', not", ""),
        ("preset: [paper]", "7:1", "preset: input should be 'default'", ""),
        ("variation: {crossover: {mean: .nan}}", "7:25", "finite", ""),
        ("variation: {mutation: {w_max: .inf}}", "7:24", "finite", ""),
        ("search: {sampling: {low: 0.9}}", "7:10", "low exceeds high", "swap them"),
        ("variation: {mutation: {of: child, per: layer}}", "7:13", "leave `per` out", ""),
        ("variation: {crossover: {mean: 0, deviation: 0}}", "7:13", "too near zero", "mean at 1"),
        ("tasks: folder", "7:1", "tasks: input should be a valid list", ""),
        (
            "search: {archive: {kind: grid, bounds: {first: [0, 0.5]}}}",
            "7:32",
            "search.archive.bounds: needs one [low, high] for each skill",
            "",
        ),
        (
            "search: {archive: {kind: grid, bounds: {first: [0, 0.5], second: [0.5, 0.5]}}}",
            "7:58",
            "search.archive.bounds.second: low must be below high",
            "",
        ),
        (
            "search: {archive: {kind: grid, bounds: {first: [0, 1.5], second: [0, 1]}}}",
            "7:52",
            "search.archive.bounds.first.1: input should be less than or equal to 1, not 1.5",
            "",
        ),
        ("seed: 1\nseed: 2", "8:1", 'duplicate key "seed"', "keep one of the two"),
        ("search: {children: 3", "8:1", "not YAML", ""),
    ],
)
def test_a_wrong_key_is_named_with_place_and_remedy(
    tmp_path: Path, text: str, where: str, says: str, remedy: str
) -> None:
    line = refused(tmp_path, GOOD + text + "\n")
    assert line.startswith(f"r.yaml:{where}: ")
    assert says in line
    assert remedy in line


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "metric: acc}\n  second",
            "metrc: acc}\n  second",
            "r.yaml:5:21: skills.first.metrc: unknown key (did you mean 'metric'?)",
        ),
        (
            "t1, metric: acc",
            "t1, splits: {optimisation: a, validation: b, tset: c}",
            "r.yaml:5:62: skills.first.splits.tset: unknown key (did you mean 'test'?)",
        ),
        ("base: models/base\n", "", "r.yaml:1:1: base: is missing (add it)"),
        ("task: t1, ", "", "r.yaml:5:3: skills.first.task: is missing (add it)"),
        ("{one: a, two: b}", "{one: a}", "r.yaml:3:1: experts: a search needs at least two (add"),
        ("  second: {task: t2, metric: acc}\n", "", "r.yaml:4:1: skills: a search needs at least"),
        ("first: {task: t1, metric: acc}", "first: t1", "r.yaml:5:3: skills.first: needs keys"),
        ("first:", "'bad name!':", "r.yaml:5:3: skills.bad name!: is no name"),
        ("one: a", "base: a", "r.yaml:3:11: experts.base: names something else"),
        ("one: a", "'7': a", "r.yaml:3:11: experts.7: names something else"),
        ("one: a", "one: ''", "r.yaml:3:11: experts.one: string should have at least 1 char"),
        ("name: run", "name: [run]", "r.yaml:1:1: name: input should be a valid string"),
    ],
)
def test_what_is_wrong_with_the_parts(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in GOOD
    assert refused(tmp_path, GOOD.replace(old, new)).startswith(line)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no keys"),
        (b"- one\n- two\n", "holds no keys"),
        (b"just words\n", "holds no keys"),
        (b"name: \xff\xfe\n", "cannot be read"),
        (b"name: a\x00b\n", "not YAML"),
        (b"name: run\n\tbase: x\n", "not YAML"),
        (b"a: 1\n---\nb: 1\n", "not YAML"),
        (b"name: &a\n  b: *a\n", "name: input should be a valid string"),
        (b"name: &a [*a]\n", "name: input should be a valid string"),
        (b"name: " + 1000 * b"[" + b"\n", "nested too deeply"),
    ],
)
def test_what_is_no_recipe_at_all(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        load_yaml(path, Recipe)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such file \(check the path\)"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)


def test_overrides_reach_the_model(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        GOOD,
        "search.children=7",
        "experts.two=elsewhere",
        "skills.first.samples={optimisation: 5}",
        "variation.mutation.w_max=1e-1",
    )
    assert recipe.search.children == 7
    assert recipe.experts == {"one": "a", "two": "elsewhere"}
    assert recipe.limits("first").optimisation == 5
    assert recipe.limits("second").optimisation == 150
    assert recipe.variation.mutation.w_max == 0.1


def test_a_wrong_override_is_named_instead_of_the_file(tmp_path: Path) -> None:
    for override, line in {
        "search.children": "--set: 'search.children' is not KEY=VALUE (write",
        "=3": "--set: '=3' is not KEY=VALUE",
        "serach.children=4": "--set serach.children: serach: unknown key (did you mean 'search'?)",
        "search.childern=4": "--set search.childern: search.childern: unknown key (did you mean",
        "search.children=x": "--set search.children: search.children: input should be a valid int",
        "search=5": "--set search: search: needs keys and values under it, not 5",
        "name.x=1": "--set name.x: name holds no keys",
        "seed=[1": "--set seed: '[1' is not a YAML value",
    }.items():
        assert refused(tmp_path, GOOD, override).startswith(line)


def test_yaml_is_1_2(tmp_path: Path) -> None:
    text = (
        GOOD.replace("one: a", "on: a") + "variation: {crossover: {deviation: 1e-3}}\nseed: 012\n"
    )
    recipe = load(tmp_path, "\ufeff" + text)
    assert list(recipe.experts) == ["on", "two"]
    assert recipe.variation.crossover.deviation == 0.001
    assert recipe.seed == 12


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = GOOD.replace("first: {task", "first: &common {task").replace(
        "{task: t2, metric: acc}", "{<<: *common, task: t2}"
    )
    recipe = load(tmp_path, text)
    assert (recipe.skills["second"].task, recipe.skills["second"].metric) == ("t2", "acc")


def test_nearest_key_inside_lists_and_nested_unions(tmp_path: Path) -> None:
    class Item(Strict):
        weight: float = 1.0

    class Outer(Strict):
        items: list[Item] = Field(default_factory=list)
        more: dict[str, Item] | None = None

    path = tmp_path / "o.yaml"
    path.write_text("items:\n- {weight: 1}\n- {wieght: 2}\n")
    with pytest.raises(UserError, match=r"o\.yaml:3:4: items\.1\.wieght.*'weight'"):
        load_yaml(path, Outer)
    path.write_text("more:\n  a: {weihgt: 2}\n")
    with pytest.raises(UserError, match=r"o\.yaml:2:7: more\.a\.weihgt.*'weight'"):
        load_yaml(path, Outer)
