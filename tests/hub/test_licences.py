"""Licences: read from cards, and put together for a merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqd_hub.hub.licences import Licence, base_models, merged_licence, read_card, read_licence


def card(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(text)
    return folder


def test_card_and_file_are_read(tmp_path: Path) -> None:
    folder = card(tmp_path / "m", "---\nlicense: Apache-2.0\nbase_model: [a/b, c/d]\n---\n# M\n")
    (folder / "LICENSE.txt").write_text("…")
    assert read_licence(folder) == Licence("apache-2.0", None, None, "LICENSE.txt")
    assert base_models(read_card(folder)) == ("a/b", "c/d")


def test_other_licence_keeps_its_name(tmp_path: Path) -> None:
    head = "license: other\nlicense_name: acme-1\nlicense_link: LICENSE.md"
    found = read_licence(card(tmp_path, f"---\n{head}\n---\n"))
    assert (found.id, found.name, found.link) == ("other", "acme-1", "LICENSE.md")
    assert found.terms == "other: acme-1"


def test_words_that_are_no_identifier_are_a_name(tmp_path: Path) -> None:
    found = read_licence(card(tmp_path, '---\nlicense: "do  as\\nyou <b>like</b>"\n---\n'))
    assert (found.id, found.name) == ("other", "do as you <b>like</b>")
    both = read_licence(card(tmp_path, "---\nlicense: [mit, apache-2.0]\n---\n"))
    assert (both.id, both.name) == ("other", "mit and apache-2.0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no metadata",
        "---\nlicense: [\n---\n",
        "---\n- a\n- b\n---\n",
        "---\nlicense: 7\n---\n",
        "---\nlicense: ' '\n---\n",
        "---\nlicense: !!python/object/apply:os.system [touch here]\n---\n",
    ],
)
def test_cards_that_say_nothing(tmp_path: Path, text: str) -> None:
    assert read_licence(card(tmp_path, text)) == Licence()


def test_no_card(tmp_path: Path) -> None:
    assert read_licence(tmp_path) == Licence()


@pytest.mark.parametrize(
    ("ids", "merged"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), "apache-2.0"),
        (("bsd-3-clause", "mit"), "bsd-3-clause"),
        (("apache-2.0", "gpl-3.0"), "gpl-3.0"),
        (("gpl-3.0", "agpl-3.0"), "agpl-3.0"),
        (("llama3.1", "apache-2.0", "mit"), "llama3.1"),
        (("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mit"), "cc-by-nc-sa-4.0"),
        (("an-unheard-of-one", "mit"), "an-unheard-of-one"),
    ],
)
def test_one_licence_that_holds_for_all(ids: tuple[str, ...], merged: str) -> None:
    verdict = merged_licence({f"m{n}": Licence(one) for n, one in enumerate(ids)})
    assert (verdict.id, verdict.name, verdict.conflicts) == (merged, None, ())
    assert verdict.unknown == ()


@pytest.mark.parametrize(
    "ids",
    [
        ("llama3", "llama3.1"),
        ("gemma", "llama3.1"),
        ("gpl-3.0", "cc-by-nc-4.0"),
        ("gpl-3.0", "llama3"),
        ("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0"),
        ("gpl-2.0", "apache-2.0"),
    ],
)
def test_conflicts_are_said_with_who_brings_them(ids: tuple[str, str]) -> None:
    verdict = merged_licence({"base": Licence(ids[0]), "math": Licence(ids[1])})
    assert verdict.conflicts
    assert "base" in verdict.conflicts[0]


def test_two_other_licences_are_told_by_name() -> None:
    one, two = Licence("other", "acme-1"), Licence("other", "umbrella-2")
    same = merged_licence({"base": one, "math": one})
    assert (same.id, same.name, same.conflicts) == ("other", "acme-1", ())
    different = merged_licence({"base": one, "math": two})
    assert (different.id, different.name) == ("other", "acme-1 and umbrella-2")
    assert len(different.conflicts) == 1


def test_silence_is_said() -> None:
    verdict = merged_licence({"base": Licence("mit"), "a": Licence(), "b": Licence("other")})
    assert verdict.unknown == ("a", "b")
    assert verdict.id == "mit"
    nothing = merged_licence({"base": Licence()})
    assert (nothing.id, nothing.name) == ("other", "unknown")


def test_llamas_are_called_so() -> None:
    duties = merged_licence({"base": Licence("llama3"), "a": Licence("mit")}).duties
    assert any('must begin with "Llama"' in duty and "Meta Llama 3" in duty for duty in duties)
    assert any(duty.startswith("keep the notices of") for duty in duties)
    assert not any("begin" in duty for duty in merged_licence({"a": Licence("llama2")}).duties)
