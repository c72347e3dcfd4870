"""Code that comes with somebody's tasks: shown, and refused until it is trusted by its hash.

Nothing is executed or rendered to find out: files are read as text, templates are only parsed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from jinja2 import Environment, TemplateSyntaxError, nodes

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments import ENVIRONMENTS

# What a template may do: print fields of a document, choose, repeat, join. No calls.
_SAFE = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getitem),
    *(nodes.Getattr, nodes.Filter, nodes.If, nodes.For, nodes.Compare, nodes.Operand),
    *(nodes.CondExpr, nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.Add, nodes.Sub),
    *(nodes.Tuple, nodes.List, nodes.Slice, nodes.Neg, nodes.Assign),
)
_FILTERS = {
    *("trim", "upper", "lower", "capitalize", "title", "join", "length", "count", "first", "last"),
    *("replace", "int", "float", "round", "string", "list", "sort", "reverse", "default", "d"),
    *("unique", "min", "max", "abs", "sum", "tojson", "wordcount"),
}
# Keys that make lm-eval import or run something, whatever their value is.
_RUNNING = ("custom_dataset", "class", "group", "include", "hf_evaluate")
_FALSE = ("false", "no", "off")
# Of other names lm-eval downloads a metric and runs it.
_METRICS = {
    *("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "executed", "f1", "mcc"),
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score"),
    *("bleu", "chrf", "ter", "likelihood"),
}
_TEMPLATED = re.compile(r"\{\{|\{%|\{#")


def check_tasks(files: Mapping[str, bytes], trusted: Collection[str], *, where: str) -> None:
    """Refuse the first file that holds code and is not trusted.

    Args:
        files: Name → content of everything that came with a recipe's tasks.
        trusted: SHA-256 hashes, in hexadecimal, of files that the person has read.
        where: Names the repository.

    Raises:
        CodeFound: Shows the file and its hash.
    """
    for name, content in sorted(files.items()):
        digest = hashlib.sha256(content).hexdigest()
        reason = _reason(name, content)
        if reason is not None and digest not in trusted:
            raise CodeFound(name, content, digest, reason, where)


class CodeFound(UserError):
    """A file with code that is not trusted.

    Attributes:
        content: The file, for the person to read.
    """

    def __init__(self, name: str, content: bytes, digest: str, reason: str, where: str) -> None:
        self.content = content.decode(errors="replace")
        super().__init__(
            f"{name} {reason}, which would run on this machine",
            where=where,
            remedy=f"read it; if you trust it, add --trust {digest}",
        )


def _reason(name: str, content: bytes) -> str | None:
    """Why a file is code, or None."""
    if not name.endswith((".yaml", ".yml")):
        return None if name.endswith((".json", ".jsonl", ".csv", ".txt", ".md")) else "may be code"
    try:
        text = content.decode()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return "is no YAML that can be checked"
    try:
        return next(_faults(root, set()), None)
    except RecursionError:
        return "is nested too deeply to be checked"


def _faults(node: yaml.Node | None, seen: set[int]) -> Iterator[str]:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if not node.tag.startswith("tag:yaml.org,2002:"):
        yield f"names code ({node.tag[:40]})"
    elif node.tag.startswith("tag:yaml.org,2002:python"):
        yield f"names Python ({node.tag[22:60]})"
    if isinstance(node, yaml.MappingNode):
        confined = any(key.value == "metadata" and _executes(value) for key, value in node.value)
        for key, value in node.value:
            yield from _faults(key, seen)
            yield from _faults(value, seen)
            yield from _runs(key, value, confined=confined)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _faults(value, seen)
    elif isinstance(node, yaml.ScalarNode) and _TEMPLATED.search(node.value):
        fault = template_fault(node.value)
        if fault:
            yield f"has a template that {fault}"


def _executes(metadata: yaml.Node) -> bool:
    """Whether a task says how its answers are executed: then that is done in the sandbox."""
    mapping = isinstance(metadata, yaml.MappingNode)
    return mapping and any(key.value == "execution" for key, _ in metadata.value)


def _runs(key: yaml.Node, value: yaml.Node, *, confined: bool) -> Iterator[str]:
    name = str(key.value)
    unsafe = name == "unsafe_code" and not confined and str(value.value).lower() not in _FALSE
    if name in _RUNNING or unsafe:
        yield f"has the key {name!r}"
    if name == "environment" and str(value.value) not in ENVIRONMENTS:
        yield f"names the environment {str(value.value)[:60]!r}"
    if name == "metric" and str(value.value) not in _METRICS:
        yield f"has the metric {str(value.value)[:40]!r}"


def template_fault(text: str) -> str | None:
    """What in a Jinja template is beyond printing fields of a document, or None."""
    try:
        tree = Environment(autoescape=False).parse(text)  # never rendered
    except (TemplateSyntaxError, RecursionError):
        return "cannot be parsed"
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, _SAFE):
            return f"uses {type(node).__name__.lower()}"
        if isinstance(node, nodes.Getattr | nodes.Getitem):
            name = _name(node)
            if name is None:
                return "reads a computed name"
            if name.startswith("_"):
                return f"reads {name[:40]}"
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            return f"uses the filter {node.name[:40]}"
        waiting.extend(node.iter_child_nodes())
    return None


def _name(node: nodes.Getattr | nodes.Getitem) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node.arg, nodes.Slice):
        return ""
    return str(node.arg.value) if isinstance(node.arg, nodes.Const) else None
