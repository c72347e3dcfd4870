"""The check of a README's metadata.

The rules are those the Hub documents: known licences, ids of the right form, known relations,
texts where texts are due. The real check knows more (pipelines, languages, benchmark lists).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from .messages import HubError, Request, Response, answer
from .routing import route
from .site import Site

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 grok2-community gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())
_ID = re.compile(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})*|multilingual|code")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
FRONT = re.compile(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", re.DOTALL)
_MAX_CARD = 10 * 2**20
_MAX_METADATA = 2**20


@dataclass
class Findings:
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def front_matter(text: str) -> Any:
    """The YAML block at the head of a card, None without one. Raises yaml.YAMLError."""
    match = FRONT.match(text)
    return yaml.safe_load(match.group(1)) if match else None


@route("POST", "/api/validate-yaml")
def validate(site: Site, request: Request) -> Response:
    site.visitor(request)
    asked = request.json()
    content, kind = asked.get("content"), asked.get("repoType", "model")
    if not isinstance(content, str):
        raise HubError(400, '"content" must be a string')
    found = check_card(content, kind)
    value = {
        "errors": [{"message": message} for message in found.errors],
        "warnings": [{"message": message} for message in found.warnings],
    }
    return answer(value, 400 if found.errors else 200)


def check_card(text: str, kind: str) -> Findings:
    found = Findings()
    if len(text.encode()) > _MAX_CARD:
        found.errors.append("README.md is too large")
        return found
    match = FRONT.match(text)
    if match and len(match.group(1)) > _MAX_METADATA:
        found.errors.append("The metadata of README.md is too large")
        return found
    try:
        data = front_matter(text)
    except yaml.YAMLError as error:
        found.errors.append(f"Invalid YAML: {error}")
        return found
    if data is None:
        found.warnings.append("empty or missing yaml metadata in repo card")
    elif not isinstance(data, dict):
        found.errors.append("The metadata must be a mapping")
    else:
        found.errors += _common(data)
        found.errors += _dataset(data) if kind == "dataset" else _model(data)
    return found


def _common(data: dict[str, Any]) -> Iterator[str]:
    for value in _list(data.get("license")):
        if value not in LICENSES:
            known = ", ".join(sorted(LICENSES))
            yield f'"license" must be one of [{known}]'
    name = data.get("license_name")
    if name is not None and not re.fullmatch(r"[a-z0-9.-]+", str(name)):
        yield '"license_name" must match the pattern /^[a-z0-9-.]+$/'
    for value in _list(data.get("language")):
        if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
            yield f'"language" with value "{value}" is not valid. Use an ISO 639 code.'
    tags = data.get("tags")
    if tags is not None and not isinstance(tags, list):
        yield '"tags" must be an array'
    for position, tag in enumerate(_list(tags)):
        if not isinstance(tag, str):
            yield f'"tags[{position}]" must be a string'
        elif not 0 < len(tag) <= 100:
            yield f'"tags[{position}]" must have 1 to 100 characters'


def _model(data: dict[str, Any]) -> Iterator[str]:
    for field_name in ("base_model", "new_version", "datasets"):
        kind = "dataset" if field_name == "datasets" else "model"
        values = data.get(field_name)
        if values is not None and not isinstance(values, str | list):
            yield f'"{field_name}" must be a string or an array of strings'
            continue
        for value in _list(values):
            if not isinstance(value, str) or not _ID.fullmatch(value):
                use = f"Use a {kind} id from https://hf.co/{kind}s."
                yield f'"{field_name}" with value "{value}" is not valid. {use}'
    relation = data.get("base_model_relation")
    if relation is not None and relation not in _RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(_RELATIONS)}]'
    for field_name in ("library_name", "pipeline_tag", "model_name"):
        if not isinstance(data.get(field_name, ""), str):
            yield f'"{field_name}" must be a string'
    index = data.get("model-index")
    if index is not None and not isinstance(index, list):
        yield '"model-index" must be an array'
    for number, model in enumerate(_list(index)):
        yield from _results(f"model-index[{number}]", model)


def _results(where: str, model: object) -> Iterator[str]:
    if not isinstance(model, dict) or "name" not in model:
        yield f'"{where}.name" is required'
        return
    for number, result in enumerate(_list(model.get("results"))):
        for field_name in ("task", "metrics"):
            if not isinstance(result, dict) or field_name not in result:
                yield f'"{where}.results[{number}].{field_name}" is required'


def _dataset(data: dict[str, Any]) -> Iterator[str]:
    configs = data.get("configs")
    if configs is not None and not isinstance(configs, list):
        yield '"configs" must be an array'
        return
    names = []
    for number, config in enumerate(_list(configs)):
        where = f"configs[{number}]"
        name = config.get("config_name") if isinstance(config, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            yield f'"{where}.config_name" must be a string of letters, digits, ".", "_" and "-"'
            continue
        names.append(name)
        for entry in _list(config.get("data_files")):
            split = isinstance(entry, dict) and {"split", "path"} <= set(entry)
            if not split and not isinstance(entry, str):
                yield f'"{where}.data_files" must be a path or a list of split and path'
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f'"configs" has {name!r} twice'
    mappings = [config for config in _list(configs) if isinstance(config, dict)]
    if sum(bool(config.get("default")) for config in mappings) > 1:
        yield 'At most one of "configs" may be the default'


def _list(value: object) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
