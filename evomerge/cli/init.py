"""``evomerge init``: a commented experiment, drafted from checkpoints and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evomerge.config import Experiment
    from evomerge.draft import Task
    from evomerge.engine.study import Study


def init(
    base: Annotated[str, typer.Option(help="The base: a path, a hub name or zoo:NAME.")],
    expert: Annotated[list[str], typer.Option(metavar="NAME=PATH", help="An expert; repeat it.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]FILE", help="Items with answers, jsonl, one objective; repeat it."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder of the experiment.")],
    candidates: Annotated[int, typer.Option(help="Budget of candidates.", min=1)] = 100,
    measure: Annotated[
        bool, typer.Option(help="Bring up the model and measure how long a candidate takes.")
    ] = True,
) -> None:
    """Look at checkpoints and data, and write a commented experiment that runs.

    Items are split into a search and a held-out part. Kind of objective, size of the space and
    budget follow rules that the written file states; change there what you know better.

    Example: evomerge init --base zoo:base --expert vqa=zoo:full/vqa --expert ocr=zoo:full/ocr
    --data items.jsonl --out my-search
    """
    from rich.console import Console

    from evomerge.backends.texts import Texts
    from evomerge.checkpoints.sources import open_sources
    from evomerge.config import load_experiment
    from evomerge.draft import (
        experiment_text,
        new_tokens,
        shape_of,
        task_of,
        write_draft,
    )
    from evomerge.engine.study import open_study

    console = Console()
    experts = {name: _absolute(path) for name, path in _named(expert, "--expert").items()}
    files = _named(data, "--data", unnamed=True)
    with console.status("opening checkpoints and data"):
        sources = open_sources(_absolute(base), experts)
        tasks = [task_of(name, Path(path)) for name, path in files.items()]
        tokenizer = Texts(sources.base.path, sources.base.config).tokenizer
    limits = {
        task.name: new_tokens([i.answer or "" for i in (*task.search, *task.held_out)], tokenizer)
        for task in tasks
    }
    text = experiment_text(
        _absolute(base), experts, tasks, limits, shape_of(sources), candidates, _gpus()
    )
    file = write_draft(out, text, tasks)
    study = open_study(load_experiment(file))
    _say(study, tasks)
    for line in estimate_lines(study, measure):
        console.print(line, highlight=False)
    console.print(
        f"\nwritten to {file}\nstart it:  evomerge run {out} --out runs/{out.name}",
        highlight=False,
    )


def _say(study: Study, tasks: Sequence[Task]) -> None:
    for task in tasks:
        held_out = f"{len(task.held_out)} held out" if task.held_out else "too few to hold some out"
        typer.echo(f"{task.name}: {task.kind}, {len(task.search)} items to search, {held_out}")
    experiment = study.experiment
    typer.echo(f"space: {study.space.dimension} genes; {experiment.budget.candidates} candidates")
    typer.echo(search_line(experiment))


def search_line(experiment: Experiment) -> str:
    """The algorithm of an opened study's experiment, and why `auto` chose it, where it did."""
    why = f", as {experiment.auto}" if experiment.auto else ""
    return f"search: {experiment.search.algorithm}{why}"


def estimate_lines(study: Study, measure: bool) -> list[str]:
    """What a worker holds, and what a candidate and the run will take, as lines for people."""
    from evomerge.estimate import duration, memory
    from evomerge.report.terminal import format_seconds

    held = memory(study)
    lines = [
        f"memory: a worker holds {_size(held.model)} of model and maps {_size(held.files)} of "
        f"checkpoints"
        + (f", and makes {_size(held.made)} of its own" if held.made else "")
        + (f"; {_size(held.gradients)} of gradients for slopes" if held.gradients else "")
    ]
    if measure:
        took = duration(study)
        total = "" if took.total is None else f"; all of it about {format_seconds(took.total)}"
        lines.append(
            f"time: a candidate takes {took.instantiate:.2f} s to make and {took.score:.1f} s to "
            f"score (measured on {took.requests} of {took.of} requests){total}"
        )
    return lines


def _named(given: Sequence[str], option: str, unnamed: bool = False) -> dict[str, str]:
    """``NAME=VALUE`` pairs; a file may go without a name and then has its stem's."""
    from evomerge.errors import ConfigError

    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            if not unnamed:
                raise ConfigError(f"{option} {text!r}: expected NAME=PATH")
            name, value = Path(text).stem, text
        if not name or not value or name in found:
            raise ConfigError(f"{option} {text!r}: expected NAME=PATH, each name once")
        found[name] = value
    return found


def _absolute(reference: str) -> str:
    """A path that exists as an absolute one: the experiment lies in another folder."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
