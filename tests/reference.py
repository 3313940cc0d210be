"""Writes the reference pages that are made from the code: python -m tests.reference"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from evomerge.backends.config import FakeConfig, ServerConfig, TransformersConfig, VllmConfig
from evomerge.cli.main import app
from evomerge.config import Budget, Direction, Optimise, PoolConfig, Racing, SearchConfig, _File
from evomerge.grouping import Grouping
from evomerge.search.algorithms import ALGORITHMS
from evomerge.space import GeneSpec, SpaceSpec

DOCS = Path(__file__).parents[1] / "docs"
MODELS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The file", _File),
    ("directions: NAME", Direction),
    ("space", SpaceSpec),
    ("space: groups", Grouping),
    ("space: genes: NAME", GeneSpec),
    ("optimise", Optimise),
    ("search", SearchConfig),
    ("search: racing", Racing),
    ("budget", Budget),
    ("backend: {name: transformers}", TransformersConfig),
    ("backend: {name: vllm}", VllmConfig),
    ("backend: {name: server}", ServerConfig),
    ("backend: {name: fake}", FakeConfig),
    ("pool", PoolConfig),
)


def commands_page() -> str:
    """Every verb with its purpose, its example and its options."""
    group = typer.main.get_command(app)
    parts = ["# Commands", "What `evomerge VERB --help` says, on one page."]
    for name, command in _verbs(group):
        parts += [f"## evomerge {name}", _prose(command.help or "")]
        rows = [row for p in command.params if (row := _parameter(p)) is not None]
        if rows:
            parts.append("\n".join(["| | | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _verbs(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _verbs(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _prose(text: str) -> str:
    """The help text, its example as code."""
    text = re.sub(r"[ \t]+", " ", text.strip())
    head, mark, example = text.partition("Example:")
    shown = " ".join(example.split())
    return f"{head.strip()}\n\n    {shown}" if mark else head.strip()


def _parameter(parameter: Any) -> str | None:
    if parameter.name == "help":
        return None
    names = ", ".join(f"`{o}`" for o in parameter.opts if o.startswith("-"))
    shown = names or f"`{parameter.name.upper()}`"
    text = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
    default = parameter.default
    hidden = default is None or default is False or callable(default) or parameter.required
    plain = getattr(default, "value", default)
    return f"| {shown} | {text} | {'' if hidden or 'Sentinel' in str(default) else f'`{plain}`'} |"


def experiment_page() -> str:
    """Every key of an experiment, by the models that check it."""
    parts = [
        "# The experiment file",
        "Every key that `evomerge run` takes, from the models that check it; a wrong key names its "
        "file, line and the nearest known one. Objectives are described in `objectives/README.md`, "
        "spaces in `search_spaces/README.md`, both beside the shipped ones; how to search, in "
        "[Searching](searching.md).",
    ]
    for title, model in MODELS:
        note = " ".join((model.__doc__ or "").replace("``", "`").split())
        rows = [
            f"| `{name}` | {_type(field)} | {_default(field)} |"
            for name, field in model.model_fields.items()
        ]
        parts += [
            f"## {title}",
            note,
            "\n".join(["| key | type | default |", "|---|---|---|", *rows]),
        ]
    parts += ["## search: algorithm", "\n".join(_algorithms())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _algorithms() -> Iterator[str]:
    yield "| algorithm | of | objectives | what | options |"
    yield "|---|---|---|---|---|"
    for a in ALGORITHMS.values():
        options = "; ".join(f"`{n}` ({o.default}): {o.help}" for n, o in a.options.items())
        several = "several" if a.several_objectives else "one"
        yield f"| `{a.name}` | {a.library} | {several} | {a.help} | {options} |"


def _type(field: FieldInfo) -> str:
    """The type as people write it: choices as words, models by what they are."""
    return _shown(field.annotation).replace("|", "\\|")


def _shown(annotation: Any) -> str:
    name = getattr(annotation, "__name__", str(annotation))
    inner = get_args(annotation)
    origin = str(getattr(annotation, "__origin__", ""))
    if "Literal" in origin or name == "Literal":
        return ", ".join(f"`{json.dumps(each).strip(chr(34))}`" for each in inner)
    if inner and ("Union" in origin or "Union" in str(type(annotation))):
        kept = [i for i in inner if i is not type(None)]
        return " or ".join(dict.fromkeys(_shown(i) for i in kept))
    if "Annotated" in str(annotation)[:20] and inner:
        return _shown(inner[0])
    if "tuple" in str(annotation)[:6] and inner:
        return f"list of {_shown(inner[0])}"
    if "dict" in str(annotation)[:5] and inner:
        return f"mapping to {_shown(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "see below"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no"}.get(
        name, "any"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value in (None, "", (), {}) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value)}`"


PAGES = {"commands.md": commands_page, "experiment.md": experiment_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"written: docs/{name}")
