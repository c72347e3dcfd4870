"""Real lm-eval tasks from YAML files, over our engine, against lm-eval's own evaluation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.engine import Candidate, Generate, LogLikelihood, Reply
from cqd_hub.evaluation.engine.loading import load_model
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.evaluation.evaluator import Evaluation, Evaluator
from cqd_hub.evaluation.skills import Skill, load_skills
from cqd_hub.genome import Basis, Genome
from cqd_hub.recipe import Recipe
from cqd_hub.recipe.schema import Splits
from tests.evaluation.toy_tasks import (
    choosing,
    generating,
    questions,
    recipe,
    three_splits,
    write_task,
)


@pytest.fixture(scope="module")
def tokenizer(basis: Basis) -> Any:
    return AutoTokenizer.from_pretrained(basis.base.checkpoint.path)


@pytest.fixture(scope="module")
def engine(basis: Basis) -> SequentialEngine:
    return SequentialEngine(basis, device="cpu", dtype=torch.float32)


def loaded(folder: Path, tokenizer: Any, made: Recipe) -> dict[str, Skill]:
    return load_skills(made, folder, tokenizer)


def refused(folder: Path, tokenizer: Any, made: Recipe) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, tokenizer, made)
    return str(caught.value)


def evaluated(engine: SequentialEngine, skills: dict[str, Skill], basis: Basis) -> Evaluation:
    async def work() -> Evaluation:
        async with engine:
            base = Candidate(0, Genome.of_base(basis.hash, basis.layout))
            return await Evaluator(engine, skills, None).evaluate(base, "test")

    return asyncio.run(work())


def by_lm_eval(folder: Path, names: list[str], basis: Basis, **options: Any) -> dict[str, Any]:
    """lm-eval's own loop over its own model class, on the base."""
    import contextlib

    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    place = basis.base.checkpoint.path
    model = load_model(place, device="cpu", dtype=torch.float32)
    model.config._name_or_path = str(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    with contextlib.chdir(folder):
        manager = TaskManager(include_path=[str(folder)], include_defaults=False)
        return evaluate(wrapped, manager.load(names), bootstrap_iters=0, **options)


def test_scores_are_those_of_lm_eval(
    tmp_path: Path, tokenizer: Any, engine: SequentialEngine, basis: Basis
) -> None:
    docs = questions(200, 24)
    splits = {"optimisation": questions(0, 4), "validation": questions(50, 4)}
    generating(tmp_path, documents={**splits, "test": docs})
    for row in by_lm_eval(tmp_path, ["sums"], basis)["samples"]["sums"]:
        if row["filter"] == "letter" and row["doc_id"] % 2:  # every other answer right
            docs[row["doc_id"]]["answer"] = row["filtered_resps"][0]
    generating(tmp_path, documents={**splits, "test": docs})
    choosing(
        tmp_path,
        documents={
            split: [{"question": row["question"], "label": n % 3} for n, row in enumerate(rows)]
            for split, rows in {**splits, "test": docs}.items()
        },
    )
    truth = by_lm_eval(tmp_path, ["sums", "pick"], basis)
    for metrics in (("exact_match,letter", "acc"), ("exact_match,all", "acc_norm")):
        made = recipe(f"sums:{metrics[0]}", f"pick:{metrics[1]}")
        evaluation = evaluated(engine, loaded(tmp_path, tokenizer, made), basis)
        for task, skill, metric in (("sums", "one", metrics[0]), ("pick", "two", metrics[1])):
            key, _, filter_ = metric.partition(",")
            rows = {
                row["doc_id"]: row[key]
                for row in truth["samples"][task]
                if row["filter"] == (filter_ or "none")
            }
            ours = [m for m in evaluation.measurements if m.skill == skill]
            assert {int(m.sample.split(":")[1]): m.score for m in ours} == rows
            wanted = truth["results"][task][f"{key},{filter_ or 'none'}"]
            assert evaluation.scores()[skill] == pytest.approx(wanted)
    texts = {row["doc_id"]: row["resps"][0][0] for row in truth["samples"]["sums"]}
    for one in evaluation.measurements:
        if one.skill == "one":
            # The toy's end tokens are plain letters: lm-eval shows them, we do not.
            theirs = texts[int(one.sample.split(":")[1])]
            assert one.text == (theirs[:-1] if one.finish == "stop" and theirs else theirs)
    assert 0 < truth["results"]["sums"]["exact_match,letter"] < 1  # scores that could differ


def test_likelihoods_are_those_of_lm_eval(
    tmp_path: Path, tokenizer: Any, engine: SequentialEngine, basis: Basis
) -> None:
    """Contexts that end in spaces, are empty, or merge with the choice."""
    docs = [
        {"question": text, "label": 0}
        for text in ("the quick", "the quick   ", "", "über 🙂", "SELECT name")
    ]
    choosing(
        tmp_path,
        documents={
            "optimisation": [{"question": f"q{n}", "label": 0} for n in range(2)],
            "validation": [{"question": f"q{n}", "label": 0} for n in range(5, 7)],
            "test": docs,
        },
        doc_to_choice=[" FROM", " brown fox", "🙂"],
        target_delimiter="",
    )
    made = recipe("pick:acc", "pick:acc_norm")
    skill = loaded(tmp_path, tokenizer, made)["one"]
    truth = by_lm_eval(tmp_path, ["pick"], basis)["samples"]["pick"]

    async def work() -> list[Reply]:
        async with engine:
            base = Candidate(0, Genome.of_base(basis.hash, basis.layout))
            return await asyncio.gather(
                *(
                    engine.submit(base, request)
                    for sample in skill.samples["test"]
                    for (request,) in sample.requests
                )
            )

    ours = [reply.log_likelihood for reply in asyncio.run(work())]
    theirs = [
        float(response[0][0])
        for row in sorted(truth, key=lambda row: row["doc_id"])
        for response in row["resps"]
    ]
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_what_does_not_fit_the_model_is_refused_before_anything_runs(
    tmp_path: Path, tokenizer: Any, engine: SequentialEngine
) -> None:
    documents = three_splits()
    documents["test"][2]["question"] = "x" * 300
    generating(tmp_path, documents=documents)
    choosing(tmp_path)
    skills = loaded(tmp_path, tokenizer, recipe("sums:exact_match", "pick:acc"))
    skills["two"].check(engine)
    with pytest.raises(UserError, match=r"^skills\.one: document test:2: prompt and answer take"):
        skills["one"].check(engine)


def test_a_workbench_does_not_open_with_what_does_not_fit(
    tmp_path: Path, models: Any, tokenizer: Any
) -> None:
    from cqd_hub.run.workbench import open_workbench

    documents = three_splits()
    documents["test"][2]["question"] = "x" * 300
    generating(tmp_path, documents=documents)
    experts = {"x": str(models.full[0]), "y": str(models.full[1])}
    made = recipe("sums:exact_match", "sums:exact_match").model_copy(
        update={"base": str(models.base), "experts": experts}
    )

    async def work() -> None:
        async with open_workbench(made, tmp_path):
            pass

    with pytest.raises(UserError, match=r"document test:2: prompt and answer take"):
        asyncio.run(work())


def test_requests_are_built_once_and_say_what_the_task_says(tmp_path: Path, tokenizer: Any) -> None:
    generating(tmp_path)
    choosing(tmp_path)
    skills = loaded(tmp_path, tokenizer, recipe("sums:exact_match", "pick:acc"))
    assert [len(skills["one"].samples[split]) for split in ("optimisation", "test")] == [6, 6]
    sample = skills["one"].samples["test"][2]
    assert sample.id == "test:2"
    ((request,),) = sample.requests
    assert isinstance(request, Generate)
    assert tokenizer.decode(request.prompt) == "question: what is 202 plus three? answer:"
    assert (request.max_new_tokens, request.stop, request.temperature) == (12, ("\n",), 0.0)
    choices = [request for (request,) in skills["two"].samples["test"][0].requests]
    assert all(isinstance(request, LogLikelihood) for request in choices)
    assert [tokenizer.decode(r.prompt + r.continuation) for r in choices] == [
        f"question: what is 200 plus three? answer:  {choice}"
        for choice in ("two", "three hundred", "a b")
    ]


def test_the_task_may_be_a_file(tmp_path: Path, tokenizer: Any) -> None:
    generating(tmp_path / "deep" / "er")
    choosing(tmp_path)
    made = recipe("deep/er/sums.yaml:exact_match", "pick:acc", tasks=[])
    assert "no task named 'pick'" in refused(tmp_path, tokenizer, made)
    made = recipe("deep/er/sums.yaml:exact_match", "pick.yaml:acc", tasks=[])
    assert len(loaded(tmp_path, tokenizer, made)["two"].samples["test"]) == 6
    copy = tmp_path / "deep" / "er" / "copy.yaml"
    copy.write_text((tmp_path / "deep" / "er" / "sums.yaml").read_text())
    both = {
        _outcome(tmp_path, tokenizer, recipe(f"deep/er/{name}.yaml:exact_match", "pick.yaml:acc"))
        for name in ("sums", "copy")
    }
    assert "loaded" in both
    assert any("another file beside it holds the task 'sums' too" in text for text in both)


def _outcome(folder: Path, tokenizer: Any, made: Recipe) -> str:
    try:
        loaded(folder, tokenizer, made)
    except UserError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize("process", [False, True])
def test_splits_by_slices_and_processed_documents(
    tmp_path: Path, tokenizer: Any, process: bool
) -> None:
    generating(tmp_path, documents={"train": questions(0, 40), "test": questions(100, 20)})
    choosing(tmp_path)
    if process:  # the task leaves out every document whose answer is odd
        path = tmp_path / "sums.yaml"
        path.write_text(path.read_text() + "process_docs: !function tools.even\n")
        (tmp_path / "tools.py").write_text(
            "def even(docs):\n    return docs.filter(lambda d: int(d['answer']) % 2 == 0)\n"
        )
    splits = Splits(optimisation="train[:50%]", validation="train[50%:]", test="test")
    skill = loaded(tmp_path, tokenizer, recipe("sums:exact_match", "pick:acc", splits=splits))[
        "one"
    ]
    sizes = [len(skill.samples[name]) for name in ("optimisation", "validation", "test")]
    assert sizes == ([10, 10, 10] if process else [20, 20, 20])
    places = {sample.id for samples in skill.samples.values() for sample in samples}
    assert len(places) == sum(sizes)
    if process:
        answers = [int(s.document["answer"]) for rows in skill.samples.values() for s in rows]
        assert all(answer % 2 == 0 for answer in answers)


def test_one_split_is_shared_out(tmp_path: Path, tokenizer: Any) -> None:
    generating(tmp_path, documents={"test": questions(0, 40)})
    choosing(tmp_path)
    skill = loaded(tmp_path, tokenizer, recipe("sums:exact_match", "pick:acc"))["one"]
    assert [len(skill.samples[name]) for name in ("optimisation", "validation", "test")] == [
        20,
        8,
        12,
    ]


def test_questions_that_one_split_repeats_are_left_out(tmp_path: Path, tokenizer: Any) -> None:
    documents = {"test": [*questions(0, 40), *questions(0, 10)]}
    generating(tmp_path, documents=documents)
    choosing(tmp_path)
    notes: list[str] = []
    made = recipe("sums:exact_match", "pick:acc")
    skill = load_skills(made, tmp_path, tokenizer, note=notes.append)["one"]
    asked = {
        split: {sample.document["question"] for sample in samples}
        for split, samples in skill.samples.items()
    }
    assert len(set.union(*asked.values())) == sum(map(len, asked.values())) == 40
    assert len(skill.samples["test"]) == 15
    assert [line.rsplit(" ", 1)[0] for line in notes] == [
        "skills.one: left out documents whose question another split holds:"
    ]
    splits = Splits(optimisation="test[:30]", validation="test[30:40]", test="test[40:]")
    made = recipe("sums:exact_match", "pick:acc", splits=splits)
    assert "optimisation and test overlap" in refused(tmp_path, tokenizer, made)


def test_the_same_question_in_two_splits_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    documents = three_splits()
    documents["test"][3] = {"question": documents["validation"][5]["question"], "answer": "other"}
    generating(tmp_path, documents=documents)
    choosing(tmp_path)
    line = refused(tmp_path, tokenizer, recipe("sums:exact_match", "pick:acc"))
    assert line.startswith("skills.one: validation and test overlap: both hold the question")
    assert "105 plus three" in line
    # Few-shot examples, drawn anew for each document, do not hide it.
    documents["train"] = questions(500, 20)
    generating(tmp_path, documents=documents, training_split="train", fewshot_split="train")
    made = recipe("sums:exact_match", "pick:acc", num_fewshot=2)
    assert "validation and test overlap" in refused(tmp_path, tokenizer, made)


def test_the_same_document_by_two_slices_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    generating(tmp_path)
    choosing(tmp_path)
    splits = Splits(optimisation="test[:3]", validation="test[2:4]", test="test[4:]")
    line = refused(tmp_path, tokenizer, recipe("sums:exact_match", "pick:acc", splits=splits))
    assert "optimisation and validation overlap: both hold test document 2" in line


def test_fewshot_examples_are_the_same_every_time_and_never_samples(
    tmp_path: Path, tokenizer: Any
) -> None:
    documents = {"train": questions(500, 30), **three_splits()}
    generating(tmp_path, documents=documents, training_split="train", fewshot_split="train")
    choosing(tmp_path)
    made = recipe("sums:exact_match", "pick:acc", num_fewshot=3)
    skill = loaded(tmp_path, tokenizer, made)["one"]
    prompts = [tokenizer.decode(s.requests[0][0].prompt) for s in skill.samples["test"]]
    assert all(prompt.count("question:") == 4 for prompt in prompts)
    assert len({prompt.split("\n\n")[0] for prompt in prompts}) > 1
    assert skill.fingerprint == loaded(tmp_path, tokenizer, made)["one"].fingerprint
    bare = loaded(tmp_path, tokenizer, recipe("sums:exact_match", "pick:acc"))["one"]
    assert bare.fingerprint != skill.fingerprint

    # From the split that samples come from: only from what is left of it.
    generating(tmp_path, name="near", documents={"test": questions(0, 40)}, fewshot_split="test")
    made = recipe(
        "near:exact_match",
        "pick:acc",
        num_fewshot=2,
        samples={"optimisation": 6, "validation": 3, "test": 4},
    )
    skill = loaded(tmp_path, tokenizer, made)["one"]
    asked = {s.document["question"] for rows in skill.samples.values() for s in rows}
    for samples in skill.samples.values():
        for sample in samples:
            parts = tokenizer.decode(sample.requests[0][0].prompt).split("\n\n")
            shown = [part.rsplit(" ", 1)[0] for part in parts[:-1]]
            assert len(shown) == 2
            assert not asked & set(shown)
    made = recipe("near:exact_match", "pick:acc", num_fewshot=2)  # all of it are samples
    line = refused(tmp_path, tokenizer, made)
    assert "skills.one.num_fewshot: 0 documents are left for 2 few-shot examples" in line


@pytest.mark.parametrize("where", ["yaml", "include", "python"])
def test_the_fingerprint_holds_how_answers_are_scored(
    tmp_path: Path, tokenizer: Any, where: str
) -> None:
    generating(tmp_path, name="_common", task=None)
    (tmp_path / "_common.yaml").rename(tmp_path / "common")
    (tmp_path / "sums.yaml").write_text(
        "include: common\ntask: sums\nprocess_results: !function tools.judge\n"
    )
    (tmp_path / "tools.py").write_text(
        "def judge(doc, results):\n    return {'exact_match': float(results[0] == doc['answer'])}\n"
    )
    made = recipe("sums:exact_match", "sums.yaml:exact_match")
    before = loaded(tmp_path, tokenizer, made)
    assert before["one"].fingerprint == loaded(tmp_path, tokenizer, made)["one"].fingerprint
    file, old, new = {
        "yaml": ("sums.yaml", "task: sums", "task: sums\nfilter_list: null"),
        "include": ("common", "([a-z ])", "([a-y ])"),
        "python": ("tools.py", "== doc", "!= doc"),
    }[where]
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    after = loaded(tmp_path, tokenizer, made)
    requests = [sample.requests for sample in after["one"].samples["test"]]
    assert requests == [sample.requests for sample in before["one"].samples["test"]]
    assert after["one"].fingerprint != before["one"].fingerprint


def test_the_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    generating(tmp_path)
    generating(tmp_path, name="begun", gen_prefix="It is")
    for task, ends in (("sums", "<bos>assistant: "), ("begun", "<bos>assistant: It is")):
        made = recipe(f"{task}:exact_match", "sums:exact_match", chat_template=True)
        sample = loaded(tmp_path, tokenizer, made)["one"].samples["test"][0]
        text = tokenizer.decode(sample.requests[0][0].prompt)
        assert text.startswith("<bos>user: question: what is 200")
        assert text.endswith(ends)
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.chat_template = None
    made = recipe("sums:exact_match", "begun:exact_match", chat_template=True)
    assert "the base has no chat template" in refused(tmp_path, bare, made)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (
            "sums:exact_match,lettr",
            "one.metric: task sums has no filter 'lettr' (it has letter, all)",
        ),
        (
            "sums:exactmatch",
            "one.metric: task sums has no metric 'exactmatch' (it has exact_match)",
        ),
        ("smus:exact_match", "one.task: no task named 'smus' (did you mean 'sums'?)"),
        ("sums", "one.metric: the task does not say how its answers are executed (set metadata."),
        ("none.yaml:acc", "none.yaml: no such file"),
        ("words:perplexity", "lower perplexity is better"),
        ("both:acc", "'both' is a group of tasks (name one of them, such as gone)"),
        ("all:acc", "'all' is a group of tasks (name one of them, such as gone)"),
        ("kind:acc", "'kind' is a group of tasks (name one of them, such as beams)"),
        ("unsafe:exact_match", "lm-eval marks this task unsafe"),
        ("unsafe2:exact_match", "lm-eval marks this task unsafe"),
        ("strange", "the task does not say how its answers are executed"),
        ("rolling:word_perplexity", "lower word_perplexity is better"),
        ("beams:exact_match", "the task decodes with num_beams"),
        ("gone:exact_match", "task 'gone' cannot be loaded"),
    ],
)
def test_tasks_and_metrics_that_do_not_serve(
    tmp_path: Path, tokenizer: Any, task: str, says: str
) -> None:
    generating(tmp_path)
    write_task(
        tmp_path,
        "words",
        three_splits(),
        output_type="loglikelihood",
        metric_list=[{"metric": "perplexity", "higher_is_better": False}, {"metric": "acc"}],
    )
    (tmp_path / "both.yaml").write_text("group: both\ntask: [gone, words]\n")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [all, {group: both}, sums]\n")
    generating(tmp_path, name="unsafe", unsafe_code=True)
    generating(tmp_path, name="unsafe2", unsafe_code=True, metadata={"execution": "python"})
    generating(tmp_path, name="strange", metadata={"execution": "pyhton"})
    write_task(tmp_path, "rolling", three_splits(), output_type="loglikelihood_rolling")
    generating(tmp_path, name="beams", tag="kind", generation_kwargs={"until": [], "num_beams": 4})
    generating(tmp_path, name="gone", tag="kind")
    (tmp_path / "gone-test.jsonl").unlink()
    line = refused(tmp_path, tokenizer, recipe(task, "sums:exact_match"))
    assert says in line
    assert "\n" not in line


@pytest.mark.parametrize("more", [{}, {"metadata": {"version": 1.0}}])
def test_an_unsafe_task_is_refused_before_its_python_is_imported(
    tmp_path: Path, tokenizer: Any, more: dict[str, Any]
) -> None:
    write_task(tmp_path, "_common", three_splits(), task=None, unsafe_code=True, **more)
    (tmp_path / "_common.yaml").rename(tmp_path / "common")
    (tmp_path / "utils.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
        "def text(doc):\n    return doc['question']\n"
    )
    (tmp_path / "danger.yaml").write_text(
        "include: common\ntask: danger\ndoc_to_text: !function utils.text\n"
    )
    for task in ("danger", "danger.yaml"):
        line = refused(tmp_path, tokenizer, recipe(f"{task}:exact_match", "danger:exact_match"))
        assert "skills.one.task: lm-eval marks this task unsafe" in line
    assert not (tmp_path / "imported").exists()


def test_bare_log_likelihoods(tmp_path: Path, tokenizer: Any) -> None:
    """One context may have several endings."""
    documents = {
        split: [{"question": "the quick", "answer": f" brown {row['answer']}"} for row in rows]
        for split, rows in three_splits().items()
    }
    write_task(
        tmp_path,
        "words",
        documents,
        output_type="loglikelihood",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    skill = loaded(tmp_path, tokenizer, recipe("words:acc", "words:acc"))["one"]
    sample = skill.samples["test"][0]
    assert skill.score(sample, [[Reply(log_likelihood=-3.0, greedy=True)]]) == 1.0
    assert skill.score(sample, [[Reply(log_likelihood=-3.0, greedy=False)]]) == 0.0


def test_metrics_outside_0_to_1_and_failing_tasks(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "tools.py").write_text(
        "def size(doc, results):\n    return {'size': len(results[0]), 'pair': (1, 2)}\n"
        "def fail(doc, results):\n    raise KeyError('mine')\n"
    )
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("size", "pair")
    ]
    for name in ("size", "fail"):
        path = generating(tmp_path, name=name, metric_list=metrics, filter_list=None)
        path.write_text(path.read_text() + f"process_results: !function tools.{name}\n")
    made = recipe("size:size", "size:pair")
    skills = loaded(tmp_path, tokenizer, made)
    sample = skills["one"].samples["test"][0]
    assert skills["one"].score(sample, [[Reply(text="a")]]) == 1.0
    with pytest.raises(UserError, match=r"size gave 3; a score must lie in 0\.\.1 \(choose"):
        skills["one"].score(sample, [[Reply(text="abc")]])
    with pytest.raises(UserError, match="pair gives no number per sample"):
        skills["two"].score(sample, [[Reply(text="abc")]])
    failing = loaded(tmp_path, tokenizer, recipe("fail:size", "size:size"))["one"]
    with pytest.raises(RunError, match="the task failed on document test:0: KeyError: 'mine'"):
        failing.score(failing.samples["test"][0], [[Reply(text="abc")]])


def test_repeats_and_sampling(tmp_path: Path, tokenizer: Any) -> None:
    generating(
        tmp_path,
        repeats=3,
        generation_kwargs={"until": ["\n"], "do_sample": True, "temperature": 0.7, "top_p": 0.9},
    )
    made = recipe("sums:exact_match", "sums:exact_match")
    (requests,) = loaded(tmp_path, tokenizer, made)["one"].samples["test"][0].requests
    assert len({request.seed for request in requests}) == 3
    assert {(r.temperature, r.top_p, r.max_new_tokens) for r in requests} == {(0.7, 0.9, 256)}
    again = loaded(tmp_path, tokenizer, made)["one"].samples["test"][0].requests
    assert again == (requests,)
    other = made.model_copy(update={"seed": 1})
    assert loaded(tmp_path, tokenizer, other)["one"].samples["test"][0].requests != again


def test_documents_keep_variable_keys_and_mixed_types(tmp_path: Path, tokenizer: Any) -> None:
    """JSON values whose shape differs between rows come through as they are in the file."""
    values: list[dict[str, Any]] = [
        {"files": {"a.txt": "1\n"}, "expected": {"rows": [["tim", 1], [None, 2.5]]}},
        {"files": {"b/c.md": "x"}, "expected": {"rows": [[True]]}},
        {"files": {}, "expected": {"rows": []}},
    ]
    documents = {
        split: [{"question": f"{split} {n}", "answer": "x", **v} for n, v in enumerate(values)]
        for split in three_splits()
    }
    generating(tmp_path, documents=documents)
    skill = loaded(tmp_path, tokenizer, recipe("sums:exact_match", "sums:exact_match"))["one"]
    for sample, value in zip(skill.samples["test"], values, strict=True):
        assert sample.document["files"] == value["files"]
        assert sample.document["expected"] == value["expected"]
        flat = [cell for row in sample.document["expected"]["rows"] for cell in row]
        wanted = [cell for row in value["expected"]["rows"] for cell in row]
        assert [type(cell) for cell in flat] == [type(cell) for cell in wanted]


def test_documents_of_executed_tasks_are_checked_before_anything_runs(
    tmp_path: Path, tokenizer: Any
) -> None:
    good = {"entry": "f", "inputs": [[1]], "expected": [2]}
    for change, says in (
        ({"entry": None}, "document optimisation:1 has no entry of type str"),
        ({"inputs": None}, "document optimisation:1 has no inputs of type list"),
        ({"inputs": [3]}, "document optimisation:1 makes no program"),
        ({"expected": [1, 2]}, "document optimisation:1 has not one expected value for each"),
    ):
        documents = {
            split: [{"question": f"{split} {n}", "answer": "x", **good, **change} for n in range(3)]
            for split in three_splits()
        }
        if change != {"inputs": [3]}:  # datasets itself refuses such a mixture
            documents["optimisation"][0] |= good
        generating(tmp_path, documents=documents, metadata={"execution": "python"})
        line = refused(tmp_path, tokenizer, recipe("sums", "sums"))
        assert says.replace(":1", ":0" if change == {"inputs": [3]} else ":1") in line


def test_the_shipped_tasks_load(tokenizer: Any, tmp_path: Path) -> None:
    made = recipe("quickstart_coding", "quickstart_db", tasks=[])
    if not list(Path("evals").rglob("*.yaml")):
        pytest.skip("no shipped tasks yet")
    skills = loaded(tmp_path, tokenizer, made)
    assert [skill.execution is not None for skill in skills.values()] == [True, True]


def test_a_task_that_fails_on_a_document_is_named(tmp_path: Path, tokenizer: Any) -> None:
    path = generating(tmp_path)
    path.write_text(
        path.read_text().replace("doc_to_text: '{{question}}'", "doc_to_text: !function tools.text")
    )
    (tmp_path / "tools.py").write_text(
        "def text(doc):\n    assert '103' not in doc['question'], 'not this'\n"
        "    return doc['question']\n"
    )
    line = refused(tmp_path, tokenizer, recipe("sums:exact_match", "sums:exact_match"))
    place = "skills.one.task: the task failed on document validation:3: AssertionError: not this"
    assert line.startswith(place)


def test_a_choice_that_merges_with_its_prompt_is_scored_whole(
    tmp_path: Path, tokenizer: Any
) -> None:
    documents = {
        split: [{"question": f"{split} {n} SELECT name F", "label": 0} for n in range(2)]
        for split in three_splits()
    }
    choosing(tmp_path, documents=documents, doc_to_choice=["ROM", "x"], target_delimiter="")
    skill = loaded(tmp_path, tokenizer, recipe("pick:acc", "pick:acc"))["one"]
    (request,), _ = skill.samples["test"][0].requests
    assert isinstance(request, LogLikelihood)
    whole = tokenizer("test 0 SELECT name FROM")["input_ids"]
    assert len(whole) <= len(tokenizer("test 0 SELECT name F")["input_ids"])
    assert [*request.prompt, *request.continuation] == whole
    assert "FROM".startswith(tokenizer.decode(request.continuation).strip()[0])


def test_an_empty_answer_has_no_likelihood(tmp_path: Path, tokenizer: Any) -> None:
    documents = {
        split: [{**row, "answer": ""} for row in rows] for split, rows in three_splits().items()
    }
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    write_task(tmp_path, "none", documents, output_type="loglikelihood", metric_list=metrics)
    line = refused(tmp_path, tokenizer, recipe("none:acc", "none:acc"))
    assert "an answer to score is empty" in line
