"""An elite: a model repository that loaders take by its id, with all that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cqd_hub import __version__
from cqd_hub.errors import UserError
from cqd_hub.hub.commit import Change, Content, Head
from cqd_hub.publish.building import MERGEKIT, Built
from cqd_hub.publish.cards import Score, elite_card
from cqd_hub.publish.choice import Chosen, Form
from cqd_hub.publish.models import Models
from cqd_hub.publish.view import View
from cqd_hub.recipe import Split
from cqd_hub.statistics import mean_interval

FORMAT = 1
HEAD = "cqd_hub.json"
_KEPT = (".gitattributes",)
_PREFERENCE: tuple[Split, ...] = ("test", "validation", "optimisation")


@dataclass(frozen=True)
class Elite:
    """What an elite's repository shall hold.

    Args:
        repo: Where.
        archive: The archive's repository.
        view: The run.
        models: Base and experts.
        chosen: Who.
        form: As what.
        build: Makes the weights; called only where they are not on the Hub.
    """

    repo: str
    archive: str
    view: View
    models: Models
    chosen: Chosen
    form: Form
    build: Callable[[int, Form], Built]

    def change(self, head: Head | None) -> Change | None:
        """What is missing of it in *head*: weights, or only what is said about them.

        Raises:
            UserError: Something else is there.
        """
        old = self.published(head)
        files: dict[str, Content | None] = {}
        if old is not None:
            assert head is not None
            facts = {key: old[key] for key in ("files", "fingerprint")}
            facts["scales"] = [expert["scale"] for expert in old["experts"].values()]
            facts["mergekit"] = (head.read(MERGEKIT) or b"").decode() or None
        else:
            built = self.build(self.chosen.individual, self.form)
            facts = built.facts
            files |= built.files
            if head is not None:
                stale = set(head.files) - set(files) - {HEAD, "README.md", *_KEPT}
                files |= dict.fromkeys(stale)
        record = self._record(facts)
        known = self.view.individuals[self.chosen.individual]
        card = elite_card(
            repo=self.repo,
            archive=self.archive,
            record=record,
            models=self.models,
            scores=self.scores,
            lineage=known.lineage,
            mergekit=facts["mergekit"],
        )
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        files |= {HEAD: text.encode(), "README.md": card.encode()}
        return Change(f"{known.name}: {', '.join(self.chosen.labels)}", files)

    def published(self, head: Head | None) -> dict[str, Any] | None:
        """The record of this very elite, if its weights are there; None where they are not.

        Raises:
            UserError: Something else is there, or a newer version's.
        """
        if head is None:
            return None
        data = head.read(HEAD)
        if data is None:
            own = [path for path in head.files if path not in (*_KEPT, "README.md")]
            if own:
                raise UserError(
                    f"holds something else ({own[0]})",
                    where=self.repo,
                    remedy="choose another --to",
                )
            return None
        try:
            record = json.loads(data)
            if record["format"] != FORMAT:
                raise UserError(
                    f"was published in format {record['format']!r}, this version knows {FORMAT}",
                    where=self.repo,
                    remedy="update cqd-hub",
                )
            if record["kind"] != "elite" or record["run"] != self.view.run:
                raise UserError(
                    "holds a model of another run", where=self.repo, remedy="choose another --to"
                )
            same = all(record[key] == value for key, value in self._identity.items())
            there = all(_matches(head, name, sha) for name, sha in record["files"].items())
            return record if same and there else None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"holds a {HEAD} that cannot be read", where=self.repo, remedy="choose another --to"
            ) from None

    @property
    def scores(self) -> list[Score]:
        """Its scores on the best of the splits on which all skills were measured."""
        for split in _PREFERENCE:
            found = self.view.samples(self.chosen.individual, split)
            if set(self.view.recipe.skills) <= set(found):
                return [
                    Score(
                        skill,
                        split,
                        mean_interval(np.array(found[skill][0])),
                        ", ".join(found[skill][1]),
                    )
                    for skill in self.view.recipe.skills
                ]
        return []

    @property
    def note(self) -> str:
        """For the collection: where it stands and what it scores."""
        scores = ", ".join(f"{one.skill} {100 * one.interval.mean:.1f}" for one in self.scores)
        split = f" % ({self.scores[0].split})" if self.scores else ""
        return f"{', '.join(self.chosen.labels)}; {self.chosen.place}; {scores}{split}"[:500]

    @property
    def _identity(self) -> Mapping[str, Any]:
        """What decides the weights and the files around them."""
        known = self.view.individuals[self.chosen.individual]
        base = self.models.base
        return {
            "individual": known.id,
            "genome_hash": known.genome_hash,
            "basis": self.view.manifest["basis"],
            "form": self.form,
            "base": {"reference": base.reference, "sha256": base.sha256},
        }

    def _record(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": "elite",
            "cqd_hub": __version__,
            "archive": self.archive,
            "run": self.view.run,
            **self._identity,
            "label": self.chosen.labels[0],
            "labels": list(self.chosen.labels),
            "experts": {
                expert.name: {
                    "reference": expert.reference,
                    "sha256": expert.sha256,
                    "scale": scale,
                }
                for expert, scale in zip(self.models.experts, facts["scales"], strict=True)
            },
            "scores": {
                one.skill: {"split": one.split, **one.interval._asdict(), "path": one.path}
                for one in self.scores
            },
            "files": facts["files"],
            "fingerprint": facts["fingerprint"],
        }


def _matches(head: Head, name: str, sha256: str) -> bool:
    """Of small files the Hub tells another hash: that they are there must do."""
    there = head.files.get(name)
    return there is not None and there.sha256 in (None, sha256)
