"""lm-eval as a library of tasks: documents to requests once per run, replies to scores.

lm-eval builds the prompts and owns filters and metrics; generation is our engine's, and answers
that are programs run in our sandbox, never in lm-eval.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.evaluation.drafts import Drafts, Said
from cqd_hub.evaluation.engine import Candidate, Engine, Generate, Reply, Request
from cqd_hub.evaluation.execution import EXECUTIONS, Execution
from cqd_hub.evaluation.judging import Verdicts
from cqd_hub.evaluation.measurement import NO_NUMBERS, NO_NUMBERS_NOTE, Measurement
from cqd_hub.evaluation.prompts import chat_text, keep_shots_apart, question_of
from cqd_hub.evaluation.requests import build_request, likeliest
from cqd_hub.evaluation.samples import Documents, choose, refuse_overlap
from cqd_hub.evaluation.skill import Judged, Means, Outlook
from cqd_hub.evaluation.tasks import LoadedTask, build_filters, filter_list, unsafe
from cqd_hub.recipe import SPLITS, Recipe, Split
from cqd_hub.recipe.schema import Skill as SkillSettings

if TYPE_CHECKING:
    from cqd_hub.evaluation.episodes import Resources

EXECUTED = "executed"


class Sample(NamedTuple):
    """One document: its lm-eval instances and the requests that answer them."""

    id: str
    document: dict[str, Any]
    instances: tuple[Any, ...]
    requests: tuple[tuple[Request, ...], ...]  # per instance, one per repeat


class TaskSkill:
    """A task, one of its metrics, and the samples of the three splits.

    Built by `load_skills`. Its `guarantees` are the sandbox's.
    """

    guarantees = ""

    def __init__(
        self,
        name: str,
        loaded: LoadedTask,
        settings: SkillSettings,
        recipe: Recipe,
        note: Callable[[str], None],
    ) -> None:
        self.name, self._task, self._scoring = name, loaded.task, loaded.scoring
        self._where = f"skills.{name}"
        self.metric, self._filter = self._choose_metric(settings)
        self.execution = self._choose_execution()
        self._filters = build_filters(self._task)
        self._documents = self._choose_documents(settings, recipe, note)
        self.samples: dict[Split, tuple[Sample, ...]] = {}

    def question(self, sample: Sample) -> str:
        """The document's text; see `Skill.question`."""
        return self._question(sample.id, sample.document)

    def outlook(self, sample: Sample) -> Outlook:
        """What a document asks; a target that is no text tells nothing of an answer's length."""
        asked = list(itertools.chain(*sample.requests))
        first = asked[0]
        prompt, executed = len(first.prompt), self.execution is not None
        if not isinstance(first, Generate):
            longest = max(len(r.continuation) for r in asked if not isinstance(r, Generate))
            return Outlook(prompt, len(asked), longest, scored=True)
        answer = self._reference(sample.document)
        return Outlook(prompt, len(asked), first.max_new_tokens, answer, executed=executed)

    def _reference(self, document: dict[str, Any]) -> int | None:
        """Tokens of a document's target, and of what ends it."""
        try:
            target = self._task.doc_to_target(document)
        except Exception:  # a task's own code; what it raises matters where it is needed
            return None
        if not isinstance(target, str) or not target:
            return None
        return len(self._tokenizer(target, add_special_tokens=False)["input_ids"]) + 1

    # Samples to measurements.

    def record(self) -> dict[str, Any]:
        """Its metric; see `Skill.record`."""
        return {"metric": self.metric}

    async def open(self, resources: Resources) -> None:
        """See that there is a sandbox where answers are executed."""
        if self.execution:
            await resources.sandbox()

    async def close(self) -> None:
        """Nothing is held: the sandbox is the run's."""

    async def measure(
        self, means: Means, candidate: Candidate, split: Split, sample: Sample, drafts: Drafts
    ) -> Sequence[Measurement]:
        """Have one document answered and scored; see `Skill.measure`."""
        known = drafts.after(())
        futures = [
            [
                means.submit(
                    candidate,
                    dataclasses.replace(request, drafts=known)
                    if known and isinstance(request, Generate)
                    else request,
                )
                for request in repeats
            ]
            for repeats in sample.requests
        ]
        await asyncio.gather(*itertools.chain(*futures))
        replies = [[future.result() for future in repeats] for repeats in futures]
        first = replies[0][0]
        path, note, text = first.path or means.engine.path, "", ""
        if self.execution:
            assert means.judge.sandbox is not None
            path = f"{path}+{means.judge.sandbox.kind}"
        if any(reply.finish == NO_NUMBERS for reply in itertools.chain(*replies)):
            first = dataclasses.replace(first, finish=NO_NUMBERS)
            score, note = 0.0, NO_NUMBERS_NOTE
        elif self.execution:
            text = self.answer(sample, replies)
            score, note = await means.judge.judge(
                self.name, sample.id, self.execution, sample.document, text
            )
        else:
            scored = first.finish == "scored"
            text = likeliest(replies) if scored else "\n".join(reply.text for reply in replies[0])
            score = self.score(sample, replies)
        measurement = Measurement(
            skill=self.name,
            split=split,
            sample=sample.id,
            score=score,
            text=text,
            tokens=first.tokens,
            finish=first.finish,
            path=path,
            note=note,
        )
        return [measurement]

    def recall(self, judged: Judged, verdicts: Verdicts) -> None:
        """Keep a verdict of an earlier session."""
        if judged.finish != NO_NUMBERS:
            verdicts.remember(self.name, judged.sample, judged.text, judged.score, judged.note)

    def said(self, measurement: Measurement) -> Sequence[Said]:
        """Its first answer: one turn."""
        return [Said(measurement.tokens)]

    # Replies to scores.

    def answer(self, sample: Sample, replies: Sequence[Sequence[Reply]]) -> str:
        """The text after the task's filter, for tasks whose answers run in the sandbox."""
        answer = self._filtered(sample, replies)[0]
        while isinstance(answer, list | tuple):  # a filter that does not take the first
            answer = answer[0] if answer else ""
        return str(answer)

    def score(self, sample: Sample, replies: Sequence[Sequence[Reply]]) -> float:
        """The task's own metric for one sample.

        Args:
            sample: The sample.
            replies: Per instance, one reply per repeat.

        Raises:
            UserError: The metric is no number per sample, or not in 0..1.
            RunError: The task's own code failed.
        """
        filtered = self._filtered(sample, replies)
        with self._task_code(sample.id):
            results = self._task.process_results(sample.document, filtered)
        value = results.get(self.metric)
        if not isinstance(value, int | float) and not hasattr(value, "item"):
            raise UserError(
                f"{self.metric} gives no number per sample",
                where=f"{self._where}.metric",
                remedy=f"choose another of {', '.join(sorted(results))}",
            )
        score = float(value)
        if not 0 <= score <= 1:
            raise UserError(
                f"{self.metric} gave {score:g}; a score must lie in 0..1",
                where=f"{self._where}.metric",
                remedy="choose a metric such as acc or exact_match",
            )
        return score

    def _filtered(self, sample: Sample, replies: Sequence[Sequence[Reply]]) -> list[Any]:
        instances = [
            dataclasses.replace(
                instance,
                resps=[
                    reply.text
                    if instance.request_type == "generate_until"
                    else (reply.log_likelihood, reply.greedy)
                    for reply in answers
                ],
                filtered_resps={},
            )
            for instance, answers in zip(sample.instances, replies, strict=True)
        ]
        with self._task_code(sample.id):
            self._filters[self._filter].apply(instances)
        return [instance.filtered_resps[self._filter] for instance in instances]

    @contextlib.contextmanager
    def _task_code(self, place: str, kind: type[CqdHubError] = RunError) -> Iterator[None]:
        try:
            yield
        except CqdHubError:
            raise
        except Exception as error:  # a task's own code raises whatever it raises
            raise kind(
                f"the task failed on document {place}: {type(error).__name__}: {error}",
                where=f"{self._where}.task",
                remedy="mend the task",
            ) from error

    # Documents to requests.

    def prepare(self, tokenizer: Any, settings: SkillSettings, seed: int) -> None:
        """Build and tokenise every request of every split, once.

        Raises:
            UserError: Two splits hold the same question, or the task needs what no engine gives.
        """
        self._tokenizer = tokenizer
        template = partial(chat_text, tokenizer)
        if settings.chat_template and not tokenizer.chat_template:
            raise UserError(
                "the base has no chat template",
                where=f"{self._where}.chat_template",
                remedy="set chat_template: false",
            )
        questions = {
            split: [self._question(place, document) for place, document in documents]
            for split, documents in self._documents.items()
        }
        refuse_overlap(questions, lambda text: f"the question {text[-60:]!r}", self._where)
        if shots := self._shots(settings):
            keep_shots_apart(
                self._task,
                shots,
                set().union(*questions.values()),
                lambda document: self._question("for few-shot examples", document),
                f"{self._where}.num_fewshot",
            )
        for split, documents in self._documents.items():
            self.samples[split] = tuple(
                self._sample(place, document, tokenizer, template, settings, seed)
                for place, document in documents
            )

    def check(self, engine: Engine) -> None:
        """Refuse, before anything runs, a request of any split that the model cannot answer.

        Raises:
            UserError: Names the first document whose request does not fit.
        """
        for sample in itertools.chain(*self.samples.values()):
            for request in itertools.chain(*sample.requests):
                if error := engine.misfit(request):
                    raise UserError(
                        f"document {sample.id}: {error.what}",
                        where=error.where or self._where,
                        remedy=error.remedy,
                    )

    def _question(self, place: str, document: dict[str, Any]) -> str:
        with self._task_code(place, UserError):
            return question_of(self._task, document)

    def _shots(self, settings: SkillSettings) -> int:
        chosen = settings.num_fewshot
        return chosen if chosen is not None else self._task.config.num_fewshot or 0

    @property
    def fingerprint(self) -> str:
        """SHA-256 over how answers are scored (metric, filters, the task's YAML and Python) and
        every sample of every split: id, document and requests.
        """
        digest = hashlib.sha256(f"{self.metric} {self._filter} {self._scoring}".encode())
        for split in SPLITS:
            for sample in self.samples[split]:
                record = [sample.id, sample.document, [repr(r) for r in sample.requests]]
                digest.update(json.dumps(record, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def _sample(
        self,
        place: str,
        document: dict[str, Any],
        tokenizer: Any,
        template: Any,
        settings: SkillSettings,
        seed: int,
    ) -> Sample:
        task, chat = self._task, settings.chat_template
        # Examples are drawn for each document anew: the same ones whatever was asked before.
        draw = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4])
        task.set_fewshot_seed(draw)
        with self._task_code(place, UserError):
            context = task.fewshot_context(
                document,
                num_fewshot=self._shots(settings),
                apply_chat_template=chat,
                chat_template=template if chat else None,
                gen_prefix=task.doc_to_prefix(document),
            )
            repeats = task.config.repeats or 1
            built = task.construct_requests(
                doc=document,
                ctx=context,
                metadata=(task.task_name, 0, repeats),
                apply_chat_template=chat,
                chat_template=template if chat else None,
            )
        instances = tuple(built) if isinstance(built, list) else (built,)
        digest = hashlib.sha256(f"{seed} {self.name} {place}".encode()).digest()
        requests = tuple(
            tuple(
                build_request(
                    instance,
                    tokenizer,
                    chat=chat,
                    seed=int.from_bytes(digest[:4]) + repeat,
                    where=f"{self._where}.task",
                )
                for repeat in range(repeats)
            )
            for instance in instances
        )
        return Sample(place, document, instances, requests)

    # Choices, checked once.

    def _choose_metric(self, settings: SkillSettings) -> tuple[str, str]:
        metric, _, chosen = settings.metric.partition(",")
        names = [name for name, _ in filter_list(self._task)]
        if chosen and chosen not in names:
            raise UserError(
                f"task {settings.task} has no filter {chosen!r}",
                where=f"{self._where}.metric",
                remedy=f"it has {', '.join(names)}",
            )
        known = self._task.aggregation()
        if metric == EXECUTED:
            return metric, chosen or names[0]
        if metric not in known:
            raise UserError(
                f"task {settings.task} has no metric {metric!r}",
                where=f"{self._where}.metric",
                remedy=f"it has {', '.join(sorted(known))}",
            )
        if not self._task.higher_is_better().get(metric, True):
            raise UserError(
                f"lower {metric} is better; a score must rise with quality",
                where=f"{self._where}.metric",
                remedy="choose another metric",
            )
        return metric, chosen or names[0]

    def _choose_execution(self) -> Execution | None:
        kind = (self._task.config.metadata or {}).get("execution")
        if self.metric == EXECUTED:
            if kind not in EXECUTIONS:
                raise UserError(
                    "the task does not say how its answers are executed",
                    where=f"{self._where}.metric",
                    remedy=f"set metadata.execution to {' | '.join(EXECUTIONS)} in its YAML",
                )
            return EXECUTIONS[kind]
        if getattr(self._task, "UNSAFE_CODE", False):  # not told by the YAML alone
            raise unsafe(f"{self._where}.task")
        return None

    def _choose_documents(
        self, settings: SkillSettings, recipe: Recipe, note: Callable[[str], None]
    ) -> dict[Split, list[tuple[str, dict[str, Any]]]]:
        config = self._task.config
        documents = Documents(self._task.dataset, config.process_docs)
        places = choose(
            documents,
            evaluation_split=config.test_split or config.validation_split,
            splits=settings.splits,
            limits=recipe.limits(self.name),
            where=self._where,
            question=lambda split, index: self._question(
                f"{split}:{index}", documents[split][index]
            ),
            note=note,
        )
        result: dict[Split, list[tuple[str, dict[str, Any]]]] = {
            purpose: [(f"{split}:{index}", documents[split][index]) for split, index in chosen]
            for purpose, chosen in places.items()
        }
        if self.execution:
            for place, document in itertools.chain(*result.values()):
                if fault := self.execution.fault(document):
                    raise UserError(f"document {place} {fault}", where=f"{self._where}.task")
        return result
