"""``evomerge methods``: the merge methods, or one of them explained."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evomerge.methods import Method


def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the merge methods, or explain one with its formula, source and parameters.

    Example: evomerge methods ties
    """
    from evomerge.methods import all_methods, get_method

    chosen = all_methods() if name is None else (get_method(name),)
    if as_json:
        typer.echo(json.dumps([_as_dict(m) for m in chosen], ensure_ascii=False))
    elif name is None:
        _table(chosen)
    else:
        _explain(chosen[0])


def _as_dict(method: Method) -> dict[str, Any]:
    keys = ("name", "family", "summary", "formula", "source", "needs", "min_experts", "max_experts")
    described: dict[str, Any] = {key: getattr(method, key) for key in keys}
    return {**described, "parameters": [asdict(p) for p in method.parameters]}


def _table(chosen: tuple[Method, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "needs", "what it does", "parameters", box=box.SIMPLE_HEAD, padding=0)
    for family in dict.fromkeys(m.family for m in chosen):
        table.add_section()
        for m in chosen:
            if m.family == family:
                parameters = ", ".join(p.name for p in m.parameters)
                table.add_row(m.name, m.needs, m.summary, parameters)
    Console().print(table)


def _explain(method: Method) -> None:
    typer.echo(f"{method.name} ({method.family}, {method.needs})\n  {method.summary}\n")
    typer.echo(f"  {method.formula}\n\n  source: {method.source}\n")
    for p in method.parameters:
        kind = "yes/no" if p.switch else f"{p.low:g} to {p.high:g}"
        default = bool(p.default) if p.switch else p.default
        each = ", one an expert" if p.per_expert else ""
        typer.echo(f"  {p.name:<10} {p.help} (default {default}, {kind}{each})")
