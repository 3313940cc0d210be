"""The whole zoo from nothing: base, experts, adapters, mixture, measurements, data card.

Every training run uses one thread, so that its numbers do not depend on the machine's load; the
runs after the base go two at a time. A stage whose directory is finished is not trained again.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.zoo import items
from evomerge.zoo.paths import NAMES, TASKS

Progress = Callable[[str, int, int, str], None]
RECORD: Final = "training.json"
REPORT_EVERY: Final = 25


@dataclass(frozen=True)
class Sizes:
    """How long to train; the defaults make the shipped zoo, smaller ones a test."""

    base: int = 2000
    expert: int = 600
    adapter: int = 500
    mixture: int = 900
    items: int = items.SIZES["held_out"]


def _finished(root: Path, stage: str) -> bool:
    return (root / stage / RECORD).is_file()


def _course(stage: str, seed: int, sizes: Sizes) -> Any:
    from evomerge.zoo import plan

    kind, _, task = stage.partition("/")
    if kind == "base":
        return plan.base_course(seed, sizes.base)
    if kind == "mixture":
        return plan.mixture_course(seed, sizes.mixture)
    if kind == "full":
        return plan.expert_course(task, seed, sizes.expert)
    return plan.adapter_course(task, seed, sizes.adapter)


def _prepare(root: Path, stage: str, seed: int) -> tuple[Any, Any]:
    """The model to train and, for an adapter, the PEFT model around it."""
    from evomerge.zoo import network, store, train

    if stage == "base":
        return network.new_model(seed), None
    model = store.load_model(root / "base")
    model.requires_grad_(False)
    if stage.startswith("lora/"):
        return model, store.add_adapter(model, seed)
    for matrix in train.block_matrices(model):
        matrix.requires_grad_(True)
    return model, None


def train_stage(root: Path, stage: str, seed: int, sizes: Sizes, progress: Progress) -> None:
    """Train one checkpoint and write it to `root / stage`; the base must be there for all
    others.
    """
    import torch

    from evomerge.zoo import store, train

    torch.set_num_threads(1)
    began = time.perf_counter()
    course = _course(stage, seed, sizes)
    model, adapted = _prepare(root, stage, seed)

    def report(step: int, loss: float) -> bool:
        if step % REPORT_EVERY == 0 or step == course.steps:
            progress(stage, step, course.steps, f"loss {loss:.3f}")
        return False

    train.run(model, course, report)
    directory = root / stage
    if adapted is None:
        store.save_model(model, directory)
    else:
        store.save_adapter(adapted, directory)
    record = {
        "steps": course.steps,
        "learning_rate": course.rate,
        "pictures_a_step": course.pictures,
        "seed": course.seed,
        "seconds": round(time.perf_counter() - began),
    }
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _work(messages: Any, root: Path, stage: str, seed: int, sizes: Sizes) -> None:
    def tell(*message: Any) -> None:
        messages.put(message)

    train_stage(root, stage, seed, sizes, tell)


def _train_all(
    root: Path, stages: list[str], seed: int, sizes: Sizes, progress: Progress, workers: int
) -> None:
    if workers == 1:
        for stage in stages:
            train_stage(root, stage, seed, sizes, progress)
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, context) as pool:
        messages = manager.Queue()
        futures = [pool.submit(_work, messages, root, stage, seed, sizes) for stage in stages]
        while not all(future.done() for future in futures) or not messages.empty():
            try:
                progress(*messages.get(timeout=0.5))
            except queue.Empty:
                continue
        for future in futures:
            future.result()


def _order(stage: str) -> int:
    """Full experts first, then the mixture, then adapters."""
    return ("full", "mixture", "lora").index(stage.partition("/")[0])


def write_items(root: Path, seed: int = 0) -> None:
    """Write `<task>/search.jsonl` and `<task>/held_out.jsonl` under `root`."""
    for task in TASKS:
        (root / task).mkdir(parents=True, exist_ok=True)
        for split, count in items.SIZES.items():
            lines = [
                json.dumps(items.record(items.item(task, split, seed, i))) for i in range(count)
            ]
            (root / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def build(
    out: Path,
    seed: int = 0,
    progress: Progress = lambda stage, step, steps, note: None,
    sizes: Sizes | None = None,
    workers: int = 2,
) -> None:
    """Train, measure and document the zoo under `out`: base, mixture, full/*, lora/*,
    measured.json, DATA_CARD.md.

    `progress(stage, step, steps, note)` is called as work goes on. Needs the `zoo` extra (peft,
    scikit-learn).
    """
    from evomerge.zoo import card, measure

    sizes = sizes or Sizes()
    out.mkdir(parents=True, exist_ok=True)
    if not _finished(out, "base"):
        train_stage(out, "base", seed, sizes, progress)
    rest = [stage for stage in NAMES if stage != "base" and not _finished(out, stage)]
    _train_all(out, sorted(rest, key=_order), seed, sizes, progress, workers)
    rows: list[str] = []

    def note(row: str) -> None:
        rows.append(row)
        progress("measure", len(rows), measure.ROWS, row)

    table = measure.measure(out, sizes.items, note)
    record = {"items": sizes.items, "sizes": asdict(sizes), "accuracy": table}
    (out / "measured.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / "DATA_CARD.md").write_text(card.render(out), encoding="utf-8")
    progress("card", 1, 1, str(out / "DATA_CARD.md"))
