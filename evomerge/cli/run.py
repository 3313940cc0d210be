"""``evomerge run``: start or resume a search, and show how it goes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from evomerge.config import Experiment
    from evomerge.ledger.store import Ledger


def run(
    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment's name, a folder, or a YAML file.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Run directory [default: runs/EXPERIMENT].")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Override the pool: inline (this process) or ray.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Workers of the Ray pool.", min=1)] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Use a running Ray cluster: HOST:PORT of its head, or auto."),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Override the budget of candidates.", min=1)
    ] = None,
) -> None:
    """Search for the best merges of an experiment; the same command again resumes it.

    Example: evomerge run quickstart --out runs/quickstart
    """
    from rich.console import Console

    from evomerge.config import load_experiment

    declared = override(load_experiment(experiment), pool, workers, candidates, ray_address)
    directory = out or Path("runs") / declared.name
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    search(declared, directory, Console())


def override(
    experiment: Experiment,
    pool: str | None,
    workers: int | None,
    candidates: int | None,
    ray_address: str | None = None,
) -> Experiment:
    """The experiment with the options of the command line in place of its own."""
    from evomerge.config import experiment_from

    data = experiment.model_dump(mode="json")
    if pool == "inline":
        data["pool"] = {}
    elif pool is not None:
        data["pool"]["name"] = pool
    if ray_address is not None:
        data["pool"]["name"] = pool or "ray"
        data["pool"]["address"] = ray_address
    if workers is not None:
        data["pool"]["workers"] = workers
    if candidates is not None:
        data["budget"]["candidates"] = candidates
    return experiment_from(data)


def search(experiment: Experiment, directory: Path, console: Console) -> None:
    """Runs or resumes a search in a run directory, and prints how it goes and what it found."""
    from evomerge.cli.init import search_line
    from evomerge.cli.watch import following
    from evomerge.directions import make_directions
    from evomerge.engine.loop import Loop
    from evomerge.engine.pools import open_pool
    from evomerge.engine.study import open_study
    from evomerge.ledger.store import open_ledger
    from evomerge.report.terminal import front_view
    from evomerge.report.view import view_of

    with console.status("opening checkpoints and data") as status:
        experiment = make_directions(
            experiment, directory / "directions", lambda name: status.update(f"making {name}")
        )
        study = open_study(experiment)
    ledger = open_ledger(directory)
    try:
        loop = Loop(study, ledger)
        loop.check()
        if loop.study.experiment.auto:
            console.print(search_line(loop.study.experiment), highlight=False)
        _say_what_is_there(ledger, console)
        ledger.note(experiment.model_dump(mode="json", include={"budget", "pool"}))
        with console.status("starting workers"):
            pool = open_pool(
                study, lambda line: console.print(line, highlight=False, soft_wrap=True)
            )
        try:
            with following(directory, console) as observe:
                state = loop.run(pool, observe)
        finally:
            pool.close()
    finally:
        ledger.close()
    view = view_of(state)
    console.print(front_view(view, console.width))
    console.print(f"{state.finished}; run directory: {directory}", highlight=False)
    console.print(
        f"look again: evomerge front {directory}\n"
        f"report:     evomerge report {directory}\n"
        f"export:     evomerge export {directory} --pick knee --out MODEL",
        highlight=False,
    )


def _say_what_is_there(ledger: Ledger, console: Console) -> None:
    """One line on what an earlier session has done, if there was one."""
    from evomerge.ledger.fold import fold

    state = fold(ledger.events())
    if state.study is not None:
        done = sum(c.status != "pending" for c in state.searched())
        what = state.finished or "not finished, going on"
        console.print(f"{done} candidates are in the ledger already; {what}", highlight=False)
