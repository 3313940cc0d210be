"""Real beds: the models of the zoo, merged and run as a search's worker would, only quicker.

Weights are made by the engine's own bank and put into transformers' model. Answers are judged in
one teacher-forced pass: a greedy answer is the reference, token for token and its end included,
exactly where each token of the reference is the likeliest after those before it. So the pass that
gives the signal gives the metric too; both are counted as if they were asked apart. Merges are
linear in the genes, so slopes are those of the weights, times what each expert adds to them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks.search.bed import Bed, Slopes, Values
from evomerge.backends import candidates, make_backend
from evomerge.backends.mapping import live_names
from evomerge.checkpoints.layout import layout
from evomerge.config import Direction, Experiment, load_experiment, load_space
from evomerge.directions import make_directions, moved
from evomerge.engine.study import Study, open_study
from evomerge.methods import get_method
from evomerge.recipe import Group, Selector
from evomerge.scoring.objectives import Objective, Split
from evomerge.scoring.requests import LogLikelihood
from evomerge.space import Genome
from evomerge.zoo import network

ITEMS = 200  # search items of an objective: 1,000 in all
DIRECTIONS: dict[str, tuple[str, str, dict[str, float]]] = {
    "zoo-full": ("quickstart", "swudi", {}),
    "zoo-lora": ("quickstart-lora", "regmean_plus_plus", {"scale": 1.5}),
    "text": ("quickstart-text", "swudi", {}),
}
"""The experiment, and a static merge of its experts that is among the best (docs/comparison.md):
its method, and what it sets other than the defaults. For text it is the best that needs no data."""
FOLDER = Path("runs/search-beds")  # of directions and statistics, made once


Row = tuple[Tensor, int, Tensor | None]
"""Tokens, where the answer begins, image features."""


class Model:
    """A live merged model and the items of its objectives, as tensors."""

    def __init__(self, study: Study, items: int) -> None:
        torch.set_num_threads(1)
        self.study = study
        self.backend: Any = make_backend(study.experiment.backend, study.sources)
        self.backend.open()
        self.candidates = candidates(self.backend, study.experiment.backend, study.sources)
        self.model = self.backend.live()[0].requires_grad_(False)
        self.asked: dict[Split, dict[str, list[Row]]] = {
            "search": {o.name: self._rows(o, "search")[:items] for o in study.objectives},
            "held_out": {o.name: self._rows(o, "held_out") for o in study.objectives},
        }
        self._genome: Genome | None = None
        self._levers = _levers(study, self.model)

    @torch.inference_mode()
    def _rows(self, objective: Objective, split: Split) -> list[Row]:
        """Tokens, where the answer begins, and image features, which no candidate changes."""
        prompter = self.backend.live()[2]
        rows = []
        for item in objective.items(split):
            assert item.answer is not None
            (row,) = prompter.rows(LogLikelihood(item.messages, item.answer, ended=True))
            tokens = row.prompt.ids
            rows.append((tokens, len(tokens) - row.scored, self._see(row.prompt)))
        return rows

    def _see(self, prompt: Any) -> Tensor | None:
        """Image features (image tokens, hidden), None for a prompt without an image."""
        if not prompt.pictures:
            return None
        pixels = prompt.pictures["pixel_values"]  # (patches, channels x 2 frames x patch²)
        patches = pixels.view(len(pixels), 3, network.FRAMES, -1)[:, :, 0].flatten(1)
        return network.see(self.model, patches[None])[0]

    @torch.inference_mode()
    def answer(
        self, genome: Genome, asked: Mapping[str, tuple[int, ...]], split: Split = "search"
    ) -> dict[str, NDArray[np.float64]]:
        """By objective (n, 2): whether the answer is the reference; its log-probability (nats)."""
        self._load(genome)
        rows = [
            (name, i, *self.asked[split][name][at])
            for name in asked
            for i, at in enumerate(asked[name])
        ]
        found = {name: np.zeros((len(places), 2)) for name, places in asked.items()}
        order = sorted(range(len(rows)), key=lambda r: len(rows[r][2]))
        for begin in range(0, len(order), 64):
            chunk = [rows[r] for r in order[begin : begin + 64]]
            for (name, i, *_), values in zip(chunk, self._run(chunk), strict=True):
                found[name][i] = values
        return found

    def slopes(self, genome: Genome, asked: Mapping[str, tuple[int, ...]]) -> tuple[Values, Slopes]:
        """Signals, and the slopes of the mean soft score of the items asked, by objective."""
        self._load(genome)
        values, slopes = {}, {}
        for lever in self._levers:
            lever.parameter.requires_grad_(True)
        try:
            for name, at in asked.items():
                signal = self._answers([(name, i, *self.asked["search"][name][i]) for i in at])[2]
                mean = (signal.clamp(max=0.0) / 2).exp().mean()
                parameters = [lever.parameter for lever in self._levers]
                gradients = torch.autograd.grad(mean, parameters)
                found = torch.zeros(len(self.study.space.genes))
                for lever, gradient in zip(self._levers, gradients, strict=True):
                    found[lever.genes] += lever.steps @ gradient.flatten()
                values[name] = tuple(signal.tolist())
                slopes[name] = tuple(found.tolist())
        finally:
            for lever in self._levers:
                lever.parameter.requires_grad_(False)
        return values, slopes

    @torch.inference_mode()
    def _load(self, genome: Genome) -> None:
        if genome != self._genome:
            self.candidates.load(self.study.space.recipe(genome))
            self._genome = genome

    def _hidden(self, tokens: Tensor, features: list[Tensor | None]) -> Tensor:
        """Last hidden states (n, length, hidden) of right-padded tokens, which look back only."""
        pictures = [f for f in features if f is not None]
        if pictures:
            return network.think(self.model, torch.stack(pictures), tokens)
        return self.model.model(input_ids=tokens, use_cache=False).last_hidden_state

    def _answers(self, chunk: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tokens of all answers, ends included: their row, and whether each is the likeliest
        there; and by row the signal (nats, float64)."""
        lengths = [len(row[2]) for row in chunk]
        longest = max(lengths)
        tokens = torch.stack([F.pad(row[2], (0, longest - len(row[2]))) for row in chunk])
        hidden = self._hidden(tokens[:, :-1], [row[4] for row in chunk])
        at = torch.arange(longest - 1)
        starts = torch.tensor([row[3] for row in chunk])[:, None] - 1
        ends = torch.tensor(lengths)[:, None] - 1
        wanted = (at >= starts) & (at < ends)
        logits = F.linear(hidden[wanted], self.model.get_input_embeddings().weight)
        targets = tokens[:, 1:][wanted]
        logs = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        every = torch.arange(len(chunk))[:, None].expand_as(wanted)[wanted]
        count = torch.zeros(len(chunk), dtype=torch.float64)
        signal = count.index_add(0, every, logs.double())
        return every, logits.argmax(-1) == targets, signal

    def _run(self, chunk: Any) -> NDArray[np.float64]:
        every, right, signal = self._answers(chunk)
        wrong = torch.zeros_like(signal).index_add(0, every, (~right).double())
        return torch.stack((wrong == 0, signal), -1).double().numpy()


@dataclass(frozen=True)
class Lever:
    """A tensor of the live model, and how genes move it."""

    parameter: Tensor
    genes: Tensor
    """(experts,): their positions in the genome."""
    steps: Tensor
    """(experts, elements), float32: the change of the tensor by each of the genes, in unit box."""


def _levers(study: Study, model: Any) -> list[Lever]:
    """Of every tensor that the space moves.

    Raises ValueError for a space in which weights are not linear in the genes, one an expert.
    """
    space, base = study.space, study.sources.base
    weight = space.spec.genes.get("weight")
    plain = weight is not None and "expert" in weight.per and not (weight.log or weight.anchors)
    if space.spec.method != "task_arithmetic" or len(space.spec.genes) > 1 or not plain:
        raise ValueError(
            f"space {space.spec.name!r}: expected task_arithmetic with a linear weight an expert; "
            "slopes of others are not known here"
        )
    parameters = dict(model.named_parameters())
    names, _ = live_names(model, base.tensors)
    places = layout(base.tensors)
    position = {gene.name: i for i, gene in enumerate(space.genes)}
    levers = []
    for name in sorted(space.moves(base.tensors)):
        (cell,) = (c for c in space.cells if Selector.parse(c.selector).matches(places[name]))
        genes = [position[space.genes_at("weight", e, cell)[0]] for e in space.experts]
        whole = base.read(name).float()
        deltas = [study.sources.experts[e].read(name) - whole for e in space.experts]
        spans = torch.tensor([space.genes[g].high - space.genes[g].low for g in genes])
        steps = torch.stack(deltas).flatten(1) * spans[:, None]
        levers.append(Lever(parameters[names[name]], torch.tensor(genes), steps))
    return levers


def bed(name: str) -> Bed:
    """A bed by name: layer-wise coefficients of the experts and of their best static merge.

    ``zoo-full@80`` is the bed with so many search items an objective.
    """
    models, _, items = name.partition("@")
    return of_experiment(name, experiment_of(models), int(items or ITEMS))


def experiment_of(name: str) -> Experiment:
    """The experiment of a bed, its static merge made."""
    base, method, parameters = DIRECTIONS[name]
    plain = load_experiment(base)
    space = load_space("layerwise-mix", Path.cwd())
    tuned = (Group(tensors=moved(space.groups), **parameters),)  # type: ignore[arg-type]
    direction = Direction(method=method, parameters=tuned)
    mixed = {**dict.fromkeys(plain.experts, "expert"), method: direction}
    searched = plain.model_copy(
        update={
            "directions": mixed,
            "space": space,
            "statistics": _statistics(base, method),
        }
    )
    return make_directions(searched, FOLDER / name)


def _statistics(experiment: str, method: str) -> str | None:
    """The statistics that a method needs, collected once."""
    merge = get_method(method)
    needed = sorted({*merge.statistics, *merge.base_statistics})
    if not needed:
        return None
    folder = FOLDER / f"{experiment}-statistics"
    command = [
        sys.executable,
        "-m",
        "evomerge",
        "calibrate",
        experiment,
        "--out",
        str(folder),
        "--collect",
    ]
    subprocess.run([*command, ",".join(needed)], check=True)
    return str(folder)


def of_experiment(name: str, experiment: Experiment, items: int) -> Bed:
    """The bed of an experiment over the zoo, with the first so many search items an objective."""
    study = open_study(experiment)
    model = Model(study, items)
    names = tuple(o.name for o in study.objectives)
    every = {n: tuple(range(len(model.asked["held_out"][n]))) for n in names}

    def column(at: int) -> Any:
        def ask(
            genome: Genome, asked: Mapping[str, tuple[int, ...]]
        ) -> dict[str, tuple[float, ...]]:
            return {n: tuple(v[:, at].tolist()) for n, v in model.answer(genome, asked).items()}

        return ask

    def held_out(genome: Genome) -> dict[str, float]:
        return {
            n: float(v[:, 0].mean()) for n, v in model.answer(genome, every, "held_out").items()
        }

    return Bed(
        name=name,
        genes=study.space.genes,
        objectives=names,
        counts={n: len(model.asked["search"][n]) for n in names},
        references={r.name: r.genome for r in study.references if r.genome is not None},
        metric=column(0),
        signal=column(1),
        slopes=model.slopes,
        held_out=held_out,
        tokens=dict.fromkeys(names, (3, 0)),
        reference_point=(0.0, 0.0),
    )
