"""OptMerge in closed form against the published iteration: agreement, and time.

    python benchmarks/optmerge.py            # some fifteen minutes on two cores
    python benchmarks/optmerge.py --quick    # some four: fewer reference steps are timed

Agreement: on every attention and MLP matrix of the zoo's language model, for its full fine-tunes
and its LoRA experts. The reference takes the 300 published steps on the published loss, in
float32, with full SVDs, gradients by autograd and torch's own optimisers. It shares no code with
the methods. (The published code iterates LoRA experts in their float16.)

Time: five experts with singular values i^-0.5, on a 2048 x 2048 and a 1024 x 4096 matrix. Where the
300 steps would take more than three minutes, some are timed and scaled to 300: all steps do the
same work. Both sides run with one thread and with all; evomerge itself gives the closed form one.
Everything goes into results/optmerge.json (--out for another file).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import evomerge
from evomerge.checkpoints.layout import place
from evomerge.checkpoints.sources import open_sources
from evomerge.methods import Context, Factors, get_method

TASKS = ("chart", "geometry", "grounding", "ocr", "vqa")
STEPS = 300
PATIENCE = 180.0  # seconds of reference steps that are really taken before scaling
SHAPES = ((2048, 2048), (1024, 4096))
TIMES = (0.0, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 50.0, 100.0, 300.0)


@dataclass(frozen=True)
class Matrix:
    """One weight: the base, the experts, and their factors if they are LoRA experts."""

    name: str
    base: torch.Tensor
    experts: list[torch.Tensor]
    factors: tuple[Factors, ...] | None

    @property
    def deltas(self) -> torch.Tensor:
        return torch.stack([e - self.base for e in self.experts])


def zoo(kind: str) -> Iterator[Matrix]:
    """The language model's attention and MLP matrices."""
    sources = open_sources("zoo:base", {task: f"zoo:{kind}/{task}" for task in TASKS})
    for name, tensor in sources.base.tensors.items():
        where = place(name)
        if where.tower != "language" or where.module not in ("attention", "mlp"):
            continue
        if len(tensor.shape) != 2:
            continue
        factors = [e.factors(name) for e in sources.experts.values()]
        known = tuple(f for f in factors if f is not None)
        yield Matrix(
            name,
            sources.base.read(name).float(),
            [e.read(name) for e in sources.experts.values()],
            known if len(known) == len(factors) else None,
        )


def drawn(shape: tuple[int, int], count: int = 5) -> Matrix:
    """Experts whose task vectors have singular values i^-0.5 and entries of some 1e-3."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    m, n = shape
    q = min(shape)
    base = normal(m, n) * 0.02
    spectrum = torch.arange(1, q + 1) ** -0.5
    experts = [
        base + 0.016 * (normal(m, q) * spectrum @ normal(q, n)) / m**0.5 for _ in range(count)
    ]
    return Matrix(f"{m} x {n}", base, experts, None)


class Reference:
    """The published iteration on one matrix: prepared by SVDs, then step by step."""

    def __init__(self, deltas: torch.Tensor, form: str) -> None:
        count, m, n = deltas.shape
        mean = deltas.mean(dim=0)
        middle = mean if form == "full" else torch.zeros_like(mean)
        rank = min(m, n) // count
        rows, targets = [], []
        for delta in deltas:
            _, s, vh = torch.linalg.svd(delta, full_matrices=True)
            u2, s2, vh2 = torch.linalg.svd(delta - middle, full_matrices=False)
            values, directions = torch.zeros(m, n), vh.clone()
            values.diagonal()[:rank] = s[:rank]
            directions[rank:] = 0
            rows.append(values @ directions)
            targets.append(u2[:, :rank] * s2[:rank] @ vh2[:rank] + middle)
        self.rows, self.targets = torch.stack(rows), torch.stack(targets)
        self.sizes = deltas.square().sum(dim=(1, 2))[:, None, None]
        start = deltas.sum(dim=0) if form == "full" else mean
        self.merged = start.clone().requires_grad_()
        self.optimiser: torch.optim.Optimizer
        if form == "full":
            self.optimiser = torch.optim.Adam([self.merged], lr=1e-5)
        else:
            self.optimiser = torch.optim.SGD([self.merged], lr=1e-4, momentum=0.9)

    def step(self, times: int) -> torch.Tensor:
        for _ in range(times):
            inner = torch.matmul(self.merged - self.targets, self.rows.transpose(1, 2))
            loss = (inner.square() / self.sizes).sum()
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
        return self.merged.detach()


def arguments(name: str, matrix: Matrix, **given: float) -> tuple[Context, dict[str, Any]]:
    """A context and the method's defaults."""
    count = len(matrix.experts)
    values: dict[str, Any] = {}
    for p in get_method(name).parameters:
        value = given.get(p.name, p.default)
        values[p.name] = (value,) * count if p.per_expert else value
        if p.switch or p.integer:
            values[p.name] = bool(value) if p.switch else int(value)
    names = tuple(str(i) for i in range(count))
    return Context(tensor=matrix.name, experts=names, factors=matrix.factors), values


def task_vector(name: str, matrix: Matrix, **given: float) -> torch.Tensor:
    """The merged task vector, float64, at scale 1."""
    context, values = arguments(name, matrix, scale=1.0, **given)
    zero = torch.zeros_like(matrix.base)  # so that rounding to float32 is that of the task vector
    moved = [e - matrix.base for e in matrix.experts]
    return get_method(name).merge(zero, moved, context, values).double()


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative difference, of the Frobenius norms."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def agreement(kind: str) -> dict[str, Any]:
    """The closed form against 300 steps of SGD with momentum, matrix by matrix."""
    rows = []
    for matrix in zoo(kind):
        deltas = matrix.deltas
        mean = deltas.mean(dim=0)
        wanted = Reference(deltas, "lora").step(STEPS)
        closed = task_vector("optmerge", matrix)
        moved = float((wanted - mean).norm())
        rows.append(
            {
                "tensor": matrix.name,
                "closed_form": apart(closed, wanted),
                "closed_form_of_movement": float((closed - wanted).norm()) / moved,
                "eigenvalue_recurrence": apart(task_vector("optmerge_lora", matrix), wanted),
                "movement": moved / float(wanted.norm()),
            }
        )
    return {"kind": kind, "worst": worst(rows), "median": middle(rows), "matrices": rows}


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {k: max(r[k] for r in rows) for k in rows[0] if k != "tensor"}


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {k: statistics.median(r[k] for r in rows) for k in rows[0] if k != "tensor"}


def adam_form(kind: str, stride: int) -> dict[str, Any]:
    """How near the flow comes to Adam's 300 steps: it follows another path, so at its best t."""
    rows = []
    for matrix in list(zoo(kind))[::stride]:
        wanted = Reference(matrix.deltas, "full").step(STEPS)
        found = {
            t: apart(task_vector("optmerge", matrix, t=t, towards_sum=1, centred=1), wanted)
            for t in TIMES
        }
        best = min(found, key=lambda t: found[t])
        rows.append(
            {
                "tensor": matrix.name,
                "optmerge_full": apart(task_vector("optmerge_full", matrix), wanted),
                "best_t": best,
                "closed_form_at_best_t": found[best],
                "starting_point": found[0.0],
            }
        )
    return {"kind": kind, "worst": worst(rows), "median": middle(rows), "matrices": rows}


@dataclass(frozen=True)
class Seconds:
    """Of the clock, and of all CPU cores together (which other processes disturb less)."""

    wall: float
    cpu: float

    def scaled(self, factor: float) -> Seconds:
        return Seconds(self.wall * factor, self.cpu * factor)

    def plus(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


def timed(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu), result


def speed(shape: tuple[int, int], threads: int, steps: int) -> dict[str, Any]:
    """Both ways on one drawn matrix, with that many threads; the method is run twice, best wins."""
    matrix = drawn(shape)
    method = get_method("optmerge")
    context, values = arguments("optmerge", matrix)
    torch.set_num_threads(threads)
    run: Callable[[], Any] = lambda: method.function(  # noqa: E731
        matrix.base, matrix.experts, context, **values
    )
    closed = min((timed(run)[0] for _ in range(2)), key=lambda s: s.wall)
    prepared, reference = timed(lambda: Reference(matrix.deltas, "lora"))
    first, _ = timed(lambda: reference.step(1))
    taken = STEPS if first.wall * STEPS <= PATIENCE else steps
    stepped, _ = timed(lambda: reference.step(taken - 1))
    whole = prepared.plus(stepped.plus(first).scaled(STEPS / taken))
    return {
        "shape": list(shape),
        "experts": len(matrix.experts),
        "threads": threads,
        "closed_form_s": closed.__dict__,
        "reference_svds_s": prepared.__dict__,
        "reference_s": whole.__dict__,
        "reference_steps_taken": taken,
        "load_average": os.getloadavg()[0],  # above `threads`: others had a share of the cores
        "ratio": {"wall": whole.wall / closed.wall, "cpu": whole.cpu / closed.cpu},
    }


def machine() -> dict[str, Any]:
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "evomerge": evomerge.__version__,
        "load_average_at_start": list(os.getloadavg()),
    }


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, *rows):
        print("  " + "  ".join(x.rjust(w) for x, w in zip(row, widths, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="time 2 reference steps, not 20")
    default = Path(__file__).parent / "results" / "optmerge.json"
    parser.add_argument("--out", type=Path, default=default, help="where the figures are written")
    given = parser.parse_args()
    threads = torch.get_num_threads()
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "machine": {**machine(), "threads": threads},
    }

    torch.set_num_threads(1)  # the zoo's matrices are small
    report["agreement"] = [agreement(kind) for kind in ("full", "lora")]
    show(
        "Closed form against 300 steps of SGD with momentum: relative difference of the merged "
        "task vector",
        ("experts", "matrices", "median", "worst", "worst, of movement", "median movement"),
        [
            (
                a["kind"],
                str(len(a["matrices"])),
                f"{a['median']['closed_form']:.2%}",
                f"{a['worst']['closed_form']:.2%}",
                f"{a['worst']['closed_form_of_movement']:.2%}",
                f"{a['median']['movement']:.2%}",
            )
            for a in report["agreement"]
        ],
    )
    report["adam"] = adam_form("full", stride=6 if given.quick else 1)
    show(
        "300 steps of Adam from the sum: relative difference of the merged task vector",
        ("", "median", "worst"),
        [
            (label, f"{report['adam']['median'][key]:.2%}", f"{report['adam']['worst'][key]:.2%}")
            for label, key in (
                ("optmerge_full, the same steps in float64", "optmerge_full"),
                ("optmerge, centred, from the sum, best t", "closed_form_at_best_t"),
                ("the sum itself", "starting_point"),
            )
        ],
    )
    report["speed"] = [
        speed(shape, n, 2 if given.quick else 20) for n in sorted({1, threads}) for shape in SHAPES
    ]
    show(
        f"Time, five experts; reference: {STEPS} steps, from so many taken, and their SVDs",
        (
            "matrix",
            "threads",
            "reference",
            "SVDs",
            "steps",
            "closed form",
            "ratio",
            "of CPU",
            "load",
        ),
        [
            (
                " x ".join(map(str, s["shape"])),
                str(s["threads"]),
                f"{s['reference_s']['wall']:.0f} s",
                f"{s['reference_svds_s']['wall']:.0f} s",
                str(s["reference_steps_taken"]),
                f"{s['closed_form_s']['wall']:.2f} s",
                f"{s['ratio']['wall']:.0f}",
                f"{s['ratio']['cpu']:.0f}",
                f"{s['load_average']:.1f}",
            )
            for s in report["speed"]
        ],
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {given.out}")


if __name__ == "__main__":
    main()
