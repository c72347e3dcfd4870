"""lm-eval as a library of tasks: documents to requests once per run, replies to scores.

lm-eval builds the prompts and owns filters and metrics; generation is our engine's, and answers
that are programs run in our sandbox, never in lm-eval.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub import assets
from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.engine import Reply, Request
from cqd_hub.evaluation.execution import EXECUTIONS, Execution
from cqd_hub.evaluation.requests import build_request
from cqd_hub.evaluation.samples import choose, refuse_overlap
from cqd_hub.recipe import SPLITS, Recipe, Split
from cqd_hub.recipe.schema import Skill as SkillSettings

EXECUTED = "executed"


class Sample(NamedTuple):
    """One document: its lm-eval instances and the requests that answer them."""

    id: str
    document: dict[str, Any]
    instances: tuple[Any, ...]
    requests: tuple[tuple[Request, ...], ...]  # per instance, one per repeat


class Skill:
    """A task, one of its metrics, and the samples of the three splits.

    Built by `load_skills`.
    """

    def __init__(self, name: str, task: Any, settings: SkillSettings, recipe: Recipe) -> None:
        self.name, self._task = name, task
        self._where = f"skills.{name}"
        self.metric, self._filter = self._choose_metric(settings)
        self.execution = self._choose_execution()
        self._filters = _filters(task)
        self._documents = self._choose_documents(settings, recipe)
        self.samples: dict[Split, tuple[Sample, ...]] = {}

    # Replies to scores.

    def answer(self, sample: Sample, replies: Sequence[Sequence[Reply]]) -> str:
        """The text after the task's filter, for tasks whose answers run in the sandbox."""
        return str(self._filtered(sample, replies)[0])

    def score(self, sample: Sample, replies: Sequence[Sequence[Reply]]) -> float:
        """The task's own metric for one sample.

        Args:
            sample: The sample.
            replies: Per instance, one reply per repeat.

        Raises:
            UserError: The metric is no number per sample, or not in 0..1.
            RunError: The task's own code failed.
        """
        try:
            results = self._task.process_results(sample.document, self._filtered(sample, replies))
        except Exception as error:  # a task's own code raises whatever it raises
            raise RunError(
                f"the task failed on sample {sample.id}: {type(error).__name__}: {error}",
                where=f"{self._where}.task",
                remedy="mend the task; what was evaluated is kept",
            ) from error
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
        self._filters[self._filter].apply(instances)
        return [instance.filtered_resps[self._filter] for instance in instances]

    # Documents to requests.

    def prepare(self, tokenizer: Any, settings: SkillSettings, seed: int) -> None:
        """Build and tokenise every request of every split, once.

        Raises:
            UserError: Two splits hold the same question, or the task needs what no engine gives.
        """
        template = partial(tokenizer.apply_chat_template, tokenize=False)
        if settings.chat_template and not tokenizer.chat_template:
            raise UserError(
                "the base has no chat template",
                where=f"{self._where}.chat_template",
                remedy="set chat_template: false",
            )
        for split, documents in self._documents.items():
            self.samples[split] = tuple(
                self._sample(place, document, tokenizer, template, settings, seed)
                for place, document in documents
            )
        refuse_overlap(
            {split: [_question(s) for s in samples] for split, samples in self.samples.items()},
            lambda question: f"the question {question[0][-60:]!r}",
            self._where,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every sample of every split: id, document and requests."""
        digest = hashlib.sha256(f"{self.metric} {self._filter}".encode())
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
        shots = settings.num_fewshot
        context = task.fewshot_context(
            document,
            num_fewshot=shots if shots is not None else task.config.num_fewshot or 0,
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
        names = [name for name, _ in _filter_list(self._task)]
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
        if self._task.config.unsafe_code and kind not in EXECUTIONS:
            raise UserError(
                "lm-eval marks this task unsafe: it would run model-written code unconfined",
                where=f"{self._where}.task",
                remedy="use a task with metadata.execution and metric: executed",
            )
        return None

    def _choose_documents(
        self, settings: SkillSettings, recipe: Recipe
    ) -> dict[Split, list[tuple[str, dict[str, Any]]]]:
        config, dataset = self._task.config, self._task.dataset
        places = choose(
            {split: len(dataset[split]) for split in dataset},
            evaluation_split=config.test_split or config.validation_split,
            splits=settings.splits,
            limits=recipe.limits(self.name),
            where=self._where,
        )
        needed = {split for chosen in places.values() for split, _ in chosen}
        process = config.process_docs or (lambda documents: documents)
        processed = {split: process(dataset[split]) for split in needed}
        result: dict[Split, list[tuple[str, dict[str, Any]]]] = {}
        for purpose, chosen in places.items():
            result[purpose] = [(f"{s}:{index}", processed[s][index]) for s, index in chosen]
        if self.execution:
            for place, document in result["optimisation"][:1]:
                missing = [key for key in self.execution.fields if key not in document]
                if missing:
                    raise UserError(
                        f"document {place} has no field {missing[0]!r}", where=f"{self._where}.task"
                    )
        return result


def load_skills(recipe: Recipe, folder: Path, tokenizer: Any) -> dict[str, Skill]:
    """Load every skill of a recipe and build its requests.

    Args:
        recipe: The recipe.
        folder: The recipe's folder, which its relative paths start from.
        tokenizer: The engine's.

    Raises:
        UserError: Unknown task or metric, a metric outside 0..1, splits that overlap.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    include = [assets.folder("evals"), *((folder / part).resolve() for part in recipe.tasks)]
    for part in include[1:]:
        if not part.is_dir():
            raise UserError("no such folder", where=f"tasks: {part}", remedy="check the path")
    skills = {}
    for name, settings in recipe.skills.items():
        task = _load_task(settings.task, include, folder, f"skills.{name}.task")
        skills[name] = Skill(name, task, settings, recipe)
        skills[name].prepare(tokenizer, settings, recipe.seed)
    return skills


def _load_task(name: str, include: Sequence[Path], folder: Path, where: str) -> Any:
    from lm_eval.tasks import TaskManager

    path = (folder / name).resolve()
    if name.endswith((".yaml", ".yml")):
        if not path.is_file():
            raise UserError("no such file", where=f"{where}: {path}", remedy="check the path")
        include, name = [path.parent], _task_name(path, where)
    manager = TaskManager(include_path=list(include), include_defaults=False)
    if name not in manager.task_index:
        manager = TaskManager(include_path=list(include))  # lm-eval's own: indexed in ~10 s
    entry = manager.task_index.get(name)
    if entry is None:
        import difflib

        close = difflib.get_close_matches(name, manager.all_subtasks, n=1)
        raise UserError(
            f"no task named {name!r}",
            where=where,
            remedy=f"did you mean {close[0]!r}?" if close else "list them with `lm-eval ls tasks`",
        )
    # Data files in a task YAML are relative to it; datasets resolves them from the working folder.
    place = Path(entry.yaml_path).parent if entry.yaml_path else Path()
    try:
        with contextlib.chdir(place):
            loaded = list(manager.load([name])["tasks"].values())
    except Exception as error:  # lm-eval and datasets raise whatever their tasks raise
        text = str(error).strip().split("\n")[0]
        raise UserError(
            f"task {name!r} cannot be loaded: {type(error).__name__}: {text}", where=where
        ) from error
    if len(loaded) != 1:
        raise UserError(
            f"{name!r} is a group of {len(loaded)} tasks",
            where=where,
            remedy=f"name one of them, such as {loaded[0].task_name}" if loaded else "",
        )
    return loaded[0]


def _task_name(path: Path, where: str) -> str:
    from ruamel.yaml import YAML

    data = YAML(typ="rt", pure=True).load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not isinstance(data.get("task"), str):
        raise UserError("has no `task:` name", where=f"{where}: {path}")
    return data["task"]


def _filter_list(task: Any) -> list[tuple[str, list[Any]]]:
    listed = task.config.filter_list
    if not listed:
        return [("none", [("take_first", None)])]
    return [
        (
            item["name"],
            [
                (step["function"], {k: v for k, v in step.items() if k != "function"})
                for step in item["filter"]
            ],
        )
        for item in listed
    ]


def _filters(task: Any) -> dict[str, Any]:
    from lm_eval.filters import build_filter_ensemble

    return {name: build_filter_ensemble(name, steps) for name, steps in _filter_list(task)}


def _question(sample: Sample) -> tuple[str, ...]:
    """What is asked: the contexts, and the choices where there are any."""
    return tuple(
        instance.args[0]
        if instance.request_type == "generate_until"
        else "".join(map(str, instance.args[:2]))
        for instance in sample.instances
    )
