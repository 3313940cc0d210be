"""``evomerge validate``: check an experiment without running it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer


def validate(
    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment's name, a folder, or a YAML file.")
    ],
    measure: Annotated[
        bool, typer.Option(help="Bring up the model and measure how long a candidate takes.")
    ] = False,
) -> None:
    """Check an experiment, its checkpoints and its data, and say what it would search.

    Example: evomerge validate quickstart
    """
    from evomerge.cli.init import estimate_lines
    from evomerge.config import load_experiment
    from evomerge.directions import make_directions
    from evomerge.engine.study import open_study
    from evomerge.search.algorithms import find_algorithm

    declared = load_experiment(experiment)
    with TemporaryDirectory() as folder:
        study = open_study(make_directions(declared, Path(folder)))
        estimate = estimate_lines(study, measure)
    opened = study.sources.experts
    algorithm = find_algorithm(study.experiment.search.algorithm)
    why = study.experiment.auto
    directions = [
        f"{name} ({d if d == 'expert' else d.method})" for name, d in declared.directions.items()
    ]
    told = [r.name for r in study.references if r.genome is not None]
    items = sum(len(o.items("search")) for o in study.objectives)
    held_out = sum(len(o.items("held_out")) for o in study.objectives)
    typer.echo(
        f"{declared.name} is valid\n"
        f"  space      {declared.space.name} ({declared.space.method}), "
        f"{study.space.dimension} genes in {len(study.space.cells)} groups\n"
        f"  experts    {', '.join(f'{n} ({opened[n].kind})' for n in declared.experts)}\n"
        f"  directions {', '.join(directions) or 'none'}\n"
        f"  objectives {', '.join(o.name for o in study.objectives)}\n"
        f"  items      {items} to search, {held_out} held out\n"
        f"  front over {', '.join(declared.optimise.names)}\n"
        f"  search     {algorithm.name}: {algorithm.help}\n"
        + (f"             chosen by auto, as {why}\n" if why else "")
        + f"  references in the space: {', '.join(told) or 'none'}"
    )
    for line in estimate:
        typer.echo(f"  {line}")
