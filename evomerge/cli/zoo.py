"""``evomerge zoo``: the small real models that ship with evomerge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="The small real models that ship with evomerge.")


@app.command()
def path(
    name: Annotated[
        str, typer.Argument(help="base, full/TASK, lora/TASK, mixture, text/base or text/TASK.")
    ] = "base",
) -> None:
    """Print the directory of a zoo model.

    Example: evomerge zoo path full/vqa
    """
    from evomerge.zoo.paths import resolve

    typer.echo(resolve(f"zoo:{name.removeprefix('zoo:')}"))


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Directory of the new zoo.")] = Path("zoo"),
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
    only: Annotated[
        Literal["pictures", "text"] | None, typer.Option(help="Build one of the two zoos.")
    ] = None,
) -> None:
    """Train the zoo from nothing: base, experts, LoRA experts, mixture, the text zoo, data cards.

    Finished stages are kept: the same command goes on where it stopped. Use the result with
    EVOMERGE_ZOO=DIR.

    Example: evomerge zoo build --out my-zoo
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from evomerge.zoo.build import build as train

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, "{task.fields[note]}", console=Console()) as bars:
        tasks: dict[str, object] = {}

        def progress(stage: str, step: int, steps: int, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=steps, note=note)
            bars.update(tasks[stage], completed=step, total=steps, note=note)  # type: ignore[arg-type]

        train(out, seed, progress, part=only)
    typer.echo(f"built in {out}; use it with EVOMERGE_ZOO={out}")
