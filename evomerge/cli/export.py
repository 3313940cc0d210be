"""``evomerge export``: write a point of a run as a Hugging Face checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DType(StrEnum):
    """The dtypes that a model can be written in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    pick: Annotated[
        str,
        typer.Option(help="knee, best:OBJECTIVE, a candidate's number, or a reference's name."),
    ] = "knee",
    out: Annotated[
        Path | None, typer.Option(help="New directory of the model [default: RUN/export].")
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Load the export back and score it again.")
    ] = False,
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write a LoRA adapter, if the merge is one.")
    ] = False,
    dtype: Annotated[
        DType | None, typer.Option(help="Write it in another dtype than it was scored in.")
    ] = None,
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest file of weights, such as 5GB.")
    ] = "5GB",
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Then upload it to the Hub, as private.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: a repository that all can see.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --push: say what would be sent, send nothing.")
    ] = False,
) -> None:
    """Write a point of the front as an ordinary checkpoint, verified against what was scored.

    Where the experts are LoRA adapters, it can be one itself: --as-adapter. Beside the weights
    stand a model card, recipe.yaml, lineage.json, and mergekit.yaml where mergekit can do the same.

    Example: evomerge export runs/quickstart --pick knee --out my-merged-model
    """
    from evomerge.cli.sizes import parse_bytes
    from evomerge.errors import ConfigError, OutputError
    from evomerge.report.view import open_view

    view = open_view(run)
    candidate = view.pick(pick)
    if candidate.scores is None:
        raise OutputError(f"{candidate.label} is {candidate.status}: only a scored one is exported")
    if as_adapter and dtype is not None:
        raise ConfigError("--as-adapter writes float32 factors; leave out --dtype")
    if (public or dry_run) and push is None:
        raise ConfigError("--public and --dry-run are of --push; give --push REPO too")
    largest = parse_bytes(shard_size, "--shard-size")
    scores, target = candidate.scores, out or run / ("adapter" if as_adapter else "export")

    from evomerge.cli.progress import bytes_written, warn_about_code
    from evomerge.export import export as export_checkpoint
    from evomerge.export import export_adapter, scored_as_adapter
    from evomerge.instantiate import open_merge
    from evomerge.report.card import candidate_card
    from evomerge.report.provenance import provenance

    recipe = view.recipe(candidate)
    scored_in = recipe.dtype
    if dtype is not None:
        recipe = recipe.model_copy(update={"dtype": dtype.value})
    merge = open_merge(recipe, streaming=True)
    adapters = view.study.get("serves") == "adapters" and scored_as_adapter(merge, scores.digest)
    note = _rounded(adapters, as_adapter, scored_in, recipe.dtype)
    digest = None if note else scores.digest
    origin = provenance(merge.sources)
    card = candidate_card(view, candidate, origin, digest, note, as_adapter)
    if origin.warning():
        typer.echo("note: the sources declare no common licence; see the model card", err=True)
    if not as_adapter:
        warn_about_code(merge.sources.base)
    with bytes_written("writing") as progress:
        found = (
            export_adapter(merge, target, card, digest, progress)
            if as_adapter
            else export_checkpoint(merge, target, card, digest, progress, shard_bytes=largest)
        )
    typer.echo(
        f"{candidate.label} written to {target}; its weights are those scored: {found}"
        if not note
        else f"{candidate.label} written to {target}: {found}\n{note} --rescore compares answers."
    )
    if rescore:
        from evomerge.engine.rescore import rescore as score_again

        base = merge.recipe.base.path if as_adapter else None
        again = score_again(view.study, target, scores, base, not note, candidate.rungs)
        found_items = [s for items in again.items.values() for s in items]
        then = [s for name in again.items for s in scores.items[name]]
        same = sum(a == b for a, b in zip(found_items, then, strict=True))
        count = "all" if same == len(then) else f"{same} of"
        typer.echo(
            f"loaded back: {count} {len(then)} items of the search split are answered as scored"
        )
    if push is not None:
        from evomerge.hub import push_folder

        typer.echo(push_folder(target, push, private=not public, dry_run=dry_run))


def _rounded(adapters: bool, as_adapter: bool, scored_in: str, dtype: str) -> str:
    """How what is exported differs from what was scored; nothing if it does not."""
    if adapters and not as_adapter:
        return "It was scored as a LoRA adapter, which these weights equal up to rounding."
    if as_adapter and not adapters:
        return "It was scored as merged weights, which this adapter equals up to rounding."
    if dtype != scored_in:
        before = "the dtype of the base" if scored_in == "base" else scored_in
        return f"It was scored in {before}; these weights are rounded to {dtype}."
    return ""
