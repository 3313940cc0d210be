"""The whole zoo from nothing: base, experts, adapters, mixture, measurements, data card; and the
text zoo in the same way.

Every training run uses one thread, so that its numbers do not depend on the machine's load; the
runs after the base go two at a time. A stage whose directory is finished is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import queue
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from evomerge.zoo import items
from evomerge.zoo.paths import NAMES, TASKS, TEXT_NAMES, TEXT_TASKS
from evomerge.zoo.text import items as text_items

Part = Literal["pictures", "text"]
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
    text: float = 1.0  # share of the steps that the text zoo's plan asks for
    items: int = items.SIZES["held_out"]


def _finished(root: Path, stage: str) -> bool:
    return (root / stage / RECORD).is_file()


def _course(stage: str, seed: int, sizes: Sizes) -> Any:
    from evomerge.zoo import plan

    kind, _, task = stage.partition("/")
    if kind == "text":
        from evomerge.zoo.text import plan as text_plan

        return text_plan.course(task, seed, sizes.text)
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
    from evomerge.zoo.text import model as text_model

    if stage in ("base", TEXT_NAMES[0]):
        return (network if stage == "base" else text_model).new_model(seed), None
    model = store.load_model(root / (TEXT_NAMES[0] if stage in TEXT_NAMES else "base"))
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
    from evomerge.zoo.text import model as text_model

    torch.set_num_threads(1)
    began = time.perf_counter()
    course = _course(stage, seed, sizes)
    model, adapted = _prepare(root, stage, seed)

    def report(step: int, loss: float) -> bool:
        if step % REPORT_EVERY == 0 or step == course.steps:
            progress(stage, step, course.steps, f"loss {loss:.3f}")
        return False

    text = stage in TEXT_NAMES
    train.run(model, course, report, loss_of=text_model.loss if text else train.picture_loss)
    directory = root / stage
    if text:
        text_model.save(model, directory)
    elif adapted is None:
        store.save_model(model, directory)
    else:
        store.save_adapter(adapted, directory)
    record = {
        "steps": course.steps,
        "learning_rate": course.rate,
        "questions_a_step" if text else "pictures_a_step": course.batch,
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
    return ("full", "mixture", "lora", "text").index(stage.partition("/")[0])


def write_items(root: Path, seed: int = 0) -> None:
    """Write `<task>/search.jsonl` and `<task>/held_out.jsonl` under `root`."""
    for task in TASKS:
        for split, count in items.SIZES.items():
            drawn = (items.item(task, split, seed, i) for i in range(count))
            _write_lines(root / task / f"{split}.jsonl", map(items.record, drawn))


def write_text_items(root: Path, seed: int = 0) -> None:
    """As `write_items`, of the text zoo."""
    for task in TEXT_TASKS:
        for split, count in text_items.SIZES.items():
            drawn = text_items.questions(task, split, count, seed)
            _write_lines(root / task / f"{split}.jsonl", map(text_items.record, drawn))


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


def build(
    out: Path,
    seed: int = 0,
    progress: Progress = lambda stage, step, steps, note: None,
    sizes: Sizes | None = None,
    workers: int = 2,
    part: Part | None = None,
) -> None:
    """Train, measure and document the zoo under `out`: base, mixture, full/*, lora/*,
    measured.json, DATA_CARD.md; and all of them that the text zoo has in `text`.

    `progress(stage, step, steps, note)` is called as work goes on. `part` builds one of the two.
    The pictures need the `zoo` extra (peft, scikit-learn).
    """
    sizes = sizes or Sizes()
    if part != "text":
        _build(out, NAMES, seed, progress, sizes, workers)
    if part != "pictures":
        _build(out, TEXT_NAMES, seed, progress, sizes, workers)


def _build(
    root: Path, names: tuple[str, ...], seed: int, progress: Progress, sizes: Sizes, workers: int
) -> None:
    """One of the two zoos; the first of its names is the base."""
    from evomerge.zoo import card, measure

    text = names == TEXT_NAMES
    base, folder = names[0], (root / names[0]).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not _finished(root, base):
        train_stage(root, base, seed, sizes, progress)
    rest = [stage for stage in names if stage != base and not _finished(root, stage)]
    _train_all(root, sorted(rest, key=_order), seed, sizes, progress, workers)
    rows: list[str] = []

    def note(row: str) -> None:
        rows.append(row)
        count = measure.TEXT_ROWS if text else measure.ROWS
        progress("measure text" if text else "measure", len(rows), count, row)

    table = (measure.measure_text if text else measure.measure)(root, sizes.items, note)
    record = {"items": sizes.items, "sizes": asdict(sizes), "accuracy": table}
    if text:
        record["sha256"] = {name: _sha256(root / name) for name in names}
    (folder / "measured.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    written = folder / "DATA_CARD.md"
    written.write_text((card.render_text if text else card.render)(root), encoding="utf-8")
    progress("card", 1, 1, str(written))


def _sha256(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
