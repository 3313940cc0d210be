"""``evomerge methods``: the merge methods, or one of them explained."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evomerge.methods import Method
    from evomerge.methods.learned import Learner


def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this method.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page of docs/methods.md.")
    ] = False,
) -> None:
    """List the merge methods by family, or explain one with its formula, source and parameters.

    A method merges weights and stands in a recipe or a search space. A learner (family "learned")
    finds coefficients by gradients and gives a recipe.

    Example: evomerge methods ties
    """
    from evomerge.methods import all_methods
    from evomerge.methods.learned import all_learners

    if markdown:
        from evomerge.report.methods import methods_page

        typer.echo(methods_page(), nl=False)
        return
    every: list[Method | Learner] = [*all_methods(), *all_learners()]
    chosen = every if name is None else [_find(name)]
    if as_json:
        typer.echo(json.dumps([_as_dict(m) for m in chosen], ensure_ascii=False))
    elif name is None:
        _list(chosen)
    else:
        _explain(chosen[0])


def _find(name: str) -> Method | Learner:
    from evomerge.documents import did_you_mean
    from evomerge.errors import ConfigError
    from evomerge.methods import all_methods
    from evomerge.methods.learned import all_learners

    every: list[Method | Learner] = [*all_methods(), *all_learners()]
    known = {entry.name: entry for entry in every}
    if name not in known:
        raise ConfigError(f"unknown merge method {name!r}; {did_you_mean(name, sorted(known))}")
    return known[name]


def _as_dict(entry: Method | Learner) -> dict[str, Any]:
    from evomerge.methods import Method

    is_method = isinstance(entry, Method)
    keys = ["name", "family", "summary", "formula", "source", "needs", "cost"]
    if is_method:
        keys += ["min_experts", "max_experts", "ordered", "matrices", "shares"]
        keys += ["statistics", "base_statistics"]
    described = {key: getattr(entry, key) for key in keys}
    parameters = [asdict(p) for p in entry.parameters]
    return {"kind": "method" if is_method else "learner", **described, "parameters": parameters}


def _list(entries: list[Method | Learner]) -> None:
    from rich.console import Console
    from rich.padding import Padding

    from evomerge.methods.registry import FAMILIES

    console = Console(highlight=False)
    for family, what in FAMILIES.items():
        console.print(f"[bold]{family}[/bold] [dim]{what}[/dim]")
        for e in (e for e in entries if e.family == family):
            parameters = ", ".join(p.name for p in e.parameters) or "no parameters"
            console.print(f"  [bold cyan]{e.name}[/bold cyan]  [dim]{e.needs}, {e.cost}[/dim]")
            console.print(Padding(e.summary, (0, 0, 0, 6)))
            console.print(Padding(f"[dim]{parameters}[/dim]", (0, 0, 0, 6)))
        console.print()
    console.print("evomerge methods NAME explains one with its formula, source and parameters")


def _explain(entry: Method | Learner) -> None:
    from evomerge.report.methods import default, kind, traits

    typer.echo(f"{entry.name} ({entry.family}, {entry.needs}, {entry.cost})")
    typer.echo(f"  {entry.summary}\n\n  {entry.formula}\n\n  source: {entry.source}")
    for trait in traits(entry):
        typer.echo(f"  {trait}")
    typer.echo()
    width = max((len(p.name) for p in entry.parameters), default=0)
    for p in entry.parameters:
        typer.echo(f"  {p.name:<{width}}  {p.help} (default {default(p)}, {kind(p)})")
