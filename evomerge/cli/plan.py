"""``evomerge plan``: what a static merge will read, write, hold and take."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evomerge.budget import Choice
    from evomerge.instantiate import Merge

BUDGET_HELP = "Read at most so much of the experts: bytes (2GB), or a share (0.25, 25%)."


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, or a mergekit configuration.")],
    out: Annotated[Path, typer.Option(help="Where the model would go: that disk is timed.")] = Path(
        "merged"
    ),
    io_budget: Annotated[str | None, typer.Option("--io-budget", help=BUDGET_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a merge will read, write, hold in memory and take, and merge nothing.

    Reading and writing are timed on some megabytes, merging on one tensor.

    Example: evomerge plan recipe.yaml
    """
    from evomerge.instantiate import open_merge
    from evomerge.mergekit.read import load_any
    from evomerge.plan import plan as make

    parsed, _ = load_any(recipe)
    merge = open_merge(parsed, streaming=True)
    choice = chosen(merge, io_budget)
    made = make(merge, out, choice)
    if as_json:
        more = {} if choice is None else {"io_budget": choice.summary()}
        typer.echo(json.dumps({**asdict(made), **more}))
        return
    show = typer.echo
    show(f"reads   {_size(sum(made.reads.values()))}: " + _parts(made.reads))
    if made.unknown:
        show(f"        {_size(made.unknown)} of it is not catalogued yet: what equals the base, or")
        show("        is shared by experts, is only known when it was read")
    show(f"writes  {_size(made.writes)}, read back once; {made.moved} of {made.tensors} tensors")
    show("        may change")
    show(f"memory  {_size(made.memory)} at most, about")
    rates = made.rates
    show(
        f"time    {made.seconds:.0f} s, about (measured: reading {_size(rates['read'])}/s, writing "
        f"{_size(rates['write'])}/s, merging {rates['merge'] / 1e6:.0f} M elements/s and core)"
    )
    if choice is not None:
        show_bound(choice)


def chosen(merge: Merge, budget: str | None) -> Choice | None:
    """What a budget leaves, if there is one; takes the norms that are not known yet."""
    if budget is None:
        return None
    from evomerge.budget import choose, measure, parse

    limit = parse(budget)
    if taken := measure(merge):
        typer.echo(f"note: took the norms of {taken} tensors in a pass over the sources", err=True)
    return choose(merge, limit)


def show_bound(choice: Choice) -> None:
    """Prints how much of each task vector is left out."""
    typer.echo(
        f"budget  {_size(choice.read)} of {_size(choice.available)} of the experts are read; "
        f"left out of the task vectors, by norm:"
    )
    for name, missing in choice.left_out.items():
        whole = choice.whole[name]
        typer.echo(f"        {name}: {missing:.6g} of {whole:.6g} ({missing / (whole or 1):.2%})")


def _parts(reads: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in reads.items())


def _size(count: Any) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
