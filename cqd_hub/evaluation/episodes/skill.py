"""A skill whose samples are episodes: the model and an environment take turns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.drafts import Drafts, Said
from cqd_hub.evaluation.engine import Candidate, Engine, Generate, Reply
from cqd_hub.evaluation.episodes import transcript
from cqd_hub.evaluation.episodes._interface import (
    CONTEXT_FULL,
    ROUNDS_SPENT,
    Resources,
    Sample,
    Verdict,
)
from cqd_hub.evaluation.episodes.manifest import Loaded
from cqd_hub.evaluation.episodes.memory import key_of
from cqd_hub.evaluation.episodes.render import Dialogue, Renderer
from cqd_hub.evaluation.episodes.stage import EpisodeLost, Scene, Stage
from cqd_hub.evaluation.episodes.transcript import Exchange
from cqd_hub.evaluation.judging import Verdicts
from cqd_hub.evaluation.measurement import NO_NUMBERS, NO_NUMBERS_NOTE, Measurement
from cqd_hub.evaluation.samples import choose
from cqd_hub.evaluation.skill import Judged, Means, Outlook
from cqd_hub.recipe import SPLITS, Recipe, Split


class EpisodeSkill:
    """The episodes of one manifest. Built by `cqd_hub.evaluation.skills.load_skills`.

    A sample's score is its verdict's; its text is the transcript (`transcript`), its tokens those
    of all replies, its finish the verdict's status.

    Args:
        name: The skill's.
        loaded: Manifest and environment.
        recipe: Which samples, and the seed.
        tokenizer: The engine's.
        note: Called with a line for what is left out.

    Raises:
        UserError: Settings that mean nothing for episodes, too few samples, a tokenizer that
            cannot do what the manifest asks.
    """

    def __init__(
        self,
        name: str,
        loaded: Loaded,
        recipe: Recipe,
        tokenizer: Any,
        note: Callable[[str], None],
    ) -> None:
        self.name, self._where = name, f"skills.{name}"
        self._loaded, self._manifest = loaded, loaded.manifest
        self._environment, self._seed = loaded.environment, recipe.seed
        self._refuse_settings(recipe)
        self._renderer = Renderer(
            tokenizer,
            self._manifest.format,
            self._manifest.prefill,
            self._environment.tools,
            f"{self._where}.task",
        )
        self._renderer.check()
        self.samples: dict[Split, tuple[Sample, ...]] = self._choose(recipe, note)
        self._by_id = {s.id: s for chosen in self.samples.values() for s in chosen}
        self._stage = Stage(self._environment, f"{self._where}.task")

    # What a run records and agrees on.

    def record(self) -> dict[str, Any]:
        """Environment and kind; see `Skill.record`."""
        return {"environment": self._manifest.environment, "kind": self._environment.kind}

    @property
    def guarantees(self) -> str:
        """The environment's."""
        return self._environment.guarantees

    @property
    def fingerprint(self) -> str:
        """SHA-256 over manifest, options, chat template, the user's own source, and all samples."""
        asked = self._manifest.model_dump(exclude={"task", "options"})
        template = self._renderer.tokenizer.chat_template if asked["format"] == "chat" else None
        facts = [asked, dict(self._loaded.options), self._environment.rounds]
        facts += [repr(self._environment.tools), template, self._loaded.source, self._seed]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for split in SPLITS:
            for sample in self.samples[split]:
                record = [sample.id, sample.question, dict(sample.document), sample.fault]
                digest.update(json.dumps(record, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def question(self, sample: Sample) -> str:
        """The sample's own; see `Skill.question`."""
        return sample.question

    def outlook(self, sample: Sample) -> Outlook:
        """What an episode asks; of its prompt only the question is known before it is begun."""
        return Outlook(
            len(self._renderer.encode(sample.question)),
            self._manifest.repeats,
            self._manifest.max_new_tokens,
            turns=self._environment.rounds,
            executed=True,
        )

    # Opening.

    async def open(self, resources: Resources) -> None:
        """Open the environment."""
        await self._environment.open(resources)

    async def close(self) -> None:
        """Close the environment."""
        await self._environment.close()

    def check(self, engine: Engine) -> None:
        """Refuse a limit on replies that leaves no room for any prompt; see `Skill.check`."""
        if error := engine.misfit(Generate((0,), self._manifest.max_new_tokens)):
            raise UserError(
                f"max_new_tokens: {error.what}", where=f"{self._where}.task", remedy="lower it"
            )

    # Episodes.

    async def measure(
        self, means: Means, candidate: Candidate, split: Split, sample: Sample, drafts: Drafts
    ) -> Sequence[Measurement]:
        """Play one sample, once per repeat; see `Skill.measure`."""
        result = []
        for repeat in range(self._manifest.repeats):
            player = _Player(self, means, candidate, sample, repeat, drafts)
            try:
                verdict = await player.play()
            except EpisodeLost:  # once more from the start: what was answered is known
                try:
                    verdict = await player.play()
                except EpisodeLost as lost:
                    verdict = await self._blame(lost, means, sample)
            result.append(
                Measurement(
                    skill=self.name,
                    split=split,
                    sample=sample.id,
                    score=self._score(verdict, sample),
                    text=transcript.write(player.exchanges),
                    tokens=tuple(token for one in player.exchanges for token in one.tokens),
                    finish=verdict.status,
                    repeat=repeat,
                    path=f"{player.path}+{self._environment.kind}",
                    note=_noted(sample, verdict.note),
                )
            )
        return result

    async def _blame(self, lost: EpisodeLost, means: Means, sample: Sample) -> Verdict:
        """The verdict on an individual who lost both plays, if it was its own doing."""
        environment = self._environment
        try:
            verdict = await self._stage.act(
                means.judge, sample, lambda: environment.lost(sample, lost.error)
            )
        except EpisodeLost:
            verdict = None
        if verdict is None:
            raise lost.error from None
        return verdict

    def _score(self, verdict: Verdict, sample: Sample) -> float:
        if not 0 <= verdict.score <= 1:  # NaN too
            raise UserError(
                f"sample {sample.id} was given {verdict.score:g}; a score must lie in 0..1",
                where=f"{self._where}.task",
                remedy="mend the environment",
            )
        return float(verdict.score)

    def recall(self, judged: Judged, verdicts: Verdicts) -> None:
        """Remember every turn of a transcript, where the environment is repeatable."""
        memory, sample = self._stage.memory, self._by_id.get(judged.sample)
        if memory is None or sample is None:
            return
        exchanges, replies = transcript.read(judged.text), list[str]()
        note = judged.note.removeprefix(_noted(sample, ""))
        verdict = Verdict(judged.score, judged.finish, note)
        for exchange in exchanges:
            if not self._environment.remembered(exchange.reply):
                return
            replies.append(exchange.reply)
            memory.turns[key_of(sample.id, replies)] = exchange.seen or verdict
        if judged.finish != NO_NUMBERS and (not exchanges or exchanges[-1].seen is not None):
            spent = len(exchanges) == self._environment.rounds
            end = ROUNDS_SPENT if spent else CONTEXT_FULL
            memory.turns[key_of(sample.id, replies, end)] = verdict

    def said(self, measurement: Measurement) -> Sequence[Said]:
        """Its replies, turn by turn."""
        return transcript.said(transcript.read(measurement.text, measurement.tokens))

    def request(self, dialogue: Dialogue, sample: Sample, repeat: int, turn: int) -> Generate:
        """What the engine is asked at one turn of one episode."""
        manifest = self._manifest
        words = f"{self._seed} {self.name} {sample.id} {repeat} {turn}"
        return Generate(
            prompt=dialogue.prompt,
            max_new_tokens=manifest.max_new_tokens,
            stop=tuple(manifest.stop),
            temperature=manifest.temperature,
            top_p=manifest.top_p,
            seed=int.from_bytes(hashlib.sha256(words.encode()).digest()[:4]),
        )

    # Choices, checked once.

    def _refuse_settings(self, recipe: Recipe) -> None:
        settings = recipe.skills[self.name]
        defaults = type(settings).model_fields
        for key in ("metric", "num_fewshot", "chat_template"):
            if getattr(settings, key) != defaults[key].default:
                raise UserError(
                    "means nothing for episodes, whose environment judges them"
                    if key == "metric"
                    else "means nothing for episodes, whose manifest says how the model is asked",
                    where=f"{self._where}.{key}",
                    remedy="leave it out",
                )

    def _choose(
        self, recipe: Recipe, note: Callable[[str], None]
    ) -> dict[Split, tuple[Sample, ...]]:
        found = {split: list(samples) for split, samples in self._environment.samples().items()}
        self._refuse_twins(found)
        keep = self._environment.options.faulty == "keep"
        for split, samples in found.items():
            faulty = [sample for sample in samples if sample.fault]
            if faulty and not keep:
                found[split] = [sample for sample in samples if not sample.fault]
                named = "; ".join(f"{sample.id}: {sample.fault}" for sample in faulty)
                note(f"{self._where}: left out of {split}, known to be faulty: {named}")
        splits = recipe.skills[self.name].splits
        taken = "test" if "test" in found else next(iter(found), "")
        unused = ", ".join(f"{split} ({len(found[split])})" for split in found if split != taken)
        if splits is None and taken != "test" and unused:
            note(
                f"{self._where}: only {taken} is used ({len(found[taken])} samples), not {unused}; "
                "`splits` can name them"
            )
        chosen = choose(
            found,
            evaluation_split=taken,
            splits=splits,
            limits=recipe.limits(self.name),
            where=self._where,
            question=lambda split, index: found[split][index].question,
            note=note,
        )
        places = {
            purpose: [found[split][index] for split, index in pairs]
            for purpose, pairs in chosen.items()
        }
        return self._kept_apart(places, note)

    def _refuse_twins(self, found: Mapping[str, Sequence[Sample]]) -> None:
        if not any(found.values()):
            raise UserError(
                "the environment has no samples",
                where=f"{self._where}.options",
                remedy="name other data, or mend the environment's samples()",
            )
        ids = [sample.id for samples in found.values() for sample in samples]
        if len(set(ids)) < len(ids):
            twin = next(one for one in ids if ids.count(one) > 1)
            raise UserError(
                f"two samples are called {twin!r}",
                where=f"{self._where}.task",
                remedy="mend the environment or its data",
            )

    def _kept_apart(
        self, samples: Mapping[Split, Sequence[Sample]], note: Callable[[str], None]
    ) -> dict[Split, tuple[Sample, ...]]:
        """Leave out what asks what a later purpose asks: public sets repeat themselves."""
        owner: dict[str, Split] = {}
        kept: dict[Split, tuple[Sample, ...]] = {}
        for split in reversed(SPLITS):
            kept[split] = tuple(
                sample
                for sample in samples[split]
                if owner.setdefault(sample.question, split) == split
            )
            if len(kept[split]) < 2:
                raise UserError(
                    f"has {len(kept[split])} samples for {split} whose questions no other split "
                    "holds",
                    where=self._where,
                    remedy="give `splits` that hold at least two each",
                )
        repeated = sum(len(samples[split]) - len(kept[split]) for split in SPLITS)
        if repeated:
            note(f"{self._where}: left out samples whose question another split holds: {repeated}")
        return {split: kept[split] for split in SPLITS}


class _Player:
    """One individual at one sample; what the engine has answered is not asked for again.

    Attributes:
        exchanges: All that was said and seen in the last play, also in one that was lost.
    """

    def __init__(
        self,
        skill: EpisodeSkill,
        means: Means,
        candidate: Candidate,
        sample: Sample,
        repeat: int,
        drafts: Drafts,
    ) -> None:
        self._skill, self._means, self._candidate = skill, means, candidate
        self._sample, self._repeat, self._drafts = sample, repeat, drafts
        self._answered: dict[Generate, Reply] = {}
        self._paths: set[str] = set()
        self.exchanges: list[Exchange] = []

    @property
    def path(self) -> str:
        """How the replies of the last play were made; of an episode of several paths, all."""
        return ",".join(sorted(self._paths)) or self._means.engine.path

    async def play(self) -> Verdict:
        """Play from the start.

        Raises:
            EpisodeLost: The environment failed.
            UserError: The tokenizer or the chat template does not fit.
            RunError: The engine failed.
        """
        skill = self._skill
        self._paths.clear()
        scene = Scene(skill._stage, self._sample, self._means.judge)
        self.exchanges = exchanges = list[Exchange]()
        try:
            dialogue = skill._renderer.begin(await scene.opening())
            for turn in range(skill._environment.rounds):
                request = skill.request(dialogue, self._sample, self._repeat, turn)
                if problem := self._misfit(request):
                    verdict = await scene.end(CONTEXT_FULL)
                    return verdict._replace(note=verdict.note or problem)
                reply = await self._ask(request, exchanges)
                if reply.finish == NO_NUMBERS:
                    return Verdict(0.0, NO_NUMBERS, NO_NUMBERS_NOTE)
                message, said = dialogue.reply(reply)
                exchanges.append(Exchange(said, reply.tokens, None))
                follows = await scene.step(message, said)
                if isinstance(follows, Verdict):
                    return follows
                exchanges[-1] = Exchange(said, reply.tokens, follows)
                dialogue.see(follows.messages)
            return await scene.end(ROUNDS_SPENT)
        finally:
            await scene.close()

    def _misfit(self, request: Generate) -> str:
        """Why the context is full, or nothing; what has another reason is an error."""
        engine = self._means.engine
        error = engine.misfit(request)
        if error is None:
            return ""
        if wrong := engine.misfit(replace(request, prompt=(max(request.prompt),))):
            raise wrong
        return error.what

    async def _ask(self, request: Generate, exchanges: Sequence[Exchange]) -> Reply:
        if request not in self._answered:
            seen = [transcript.seen_key(one.seen) for one in exchanges]
            drafted = replace(request, drafts=self._drafts.after(seen))
            self._answered[request] = await self._means.submit(self._candidate, drafted)
        reply = self._answered[request]
        self._paths.add(reply.path or self._means.engine.path)
        return reply


def _noted(sample: Sample, note: str) -> str:
    """A verdict's note, after the sample's known fault."""
    return f"known fault: {sample.fault}; {note}" if sample.fault else note
