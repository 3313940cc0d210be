"""Tensors grouped by tower, block and kind of module, as far as a recipe can tell them apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby
from typing import TypeVar

from evomerge.checkpoints.layout import MODULES, TOWERS, Place

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


def selectors(wanted: Iterable[Place], every: Iterable[Place]) -> list[str]:
    """Selectors of a recipe that hold, of ``every`` cell of a model, exactly the ``wanted`` ones.

    They do not overlap. ``*`` stands wherever a part leaves nothing of the model out.
    """
    wanted, every = set(wanted), set(every)
    if wanted == every:
        return ["*/*/*"]
    # blocks by (tower, module), then modules by (tower, blocks), then towers by what is left
    blocks = _gathered({((p.tower, p.module), p.block) for p in wanted})
    existing = _gathered({((p.tower, p.module), p.block) for p in every})
    modules = _gathered(
        ((tower, "*" if found == existing[tower, module] else _blocks(found)), module)
        for (tower, module), found in blocks.items()
    )
    towers = _gathered(
        ((spelt, _modules(tower, found, existing, spelt)), tower)
        for (tower, spelt), found in modules.items()
    )
    all_towers = {p.tower for p in every}
    return [
        f"{'*' if found == all_towers else _listed(found, TOWERS)}/{spelt}/{of}"
        for (spelt, of), found in towers.items()
    ]


def _gathered(pairs: Iterable[tuple[K, V]]) -> dict[K, frozenset[V]]:
    found: dict[K, set[V]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return {key: frozenset(values) for key, values in found.items()}


def _modules(
    tower: str,
    found: frozenset[str],
    existing: Mapping[tuple[str, str], frozenset[int | None]],
    spelt: str,
) -> str:
    everything = {module for (of, module) in existing if of == tower}
    return "*" if spelt == "*" and found == everything else _listed(found, MODULES)


def _listed(names: Iterable[str], order: tuple[str, ...]) -> str:
    return ",".join(sorted(names, key=order.index))


def _blocks(blocks: frozenset[int | None]) -> str:
    numbers = sorted(b for b in blocks if b is not None)
    runs = [
        [b for _, b in run] for _, run in groupby(enumerate(numbers), key=lambda at: at[1] - at[0])
    ]
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(parts + (["-"] if None in blocks else []))
