"""``evomerge merge``: a static merge from a recipe file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (see `evomerge merge --help`).")],
    out: Annotated[Path, typer.Option(help="New directory of the merged model.")],
) -> None:
    """Merge checkpoints as a recipe says, without a search.

    A recipe names base, experts, method and parameters; `recipe.yaml` in every exported model is
    one. A relative path in it counts from the recipe's own folder.

    Example: evomerge merge recipe.yaml --out my-merged-model
    """
    from evomerge.recipe import load_recipe

    parsed = load_recipe(recipe)

    from evomerge.cli.progress import bytes_written, warn_about_code
    from evomerge.export import export
    from evomerge.instantiate import open_merge
    from evomerge.report.card import recipe_card

    opened = open_merge(parsed)
    warn_about_code(opened.sources.base)
    with bytes_written("writing") as progress:
        digest = export(opened, out, recipe_card(parsed), progress=progress)
    typer.echo(f"written to {out}; digest of the weights: {digest}")
