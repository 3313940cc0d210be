"""Which items of the search split each source is calibrated on. The held-out split is never read.

An expert is asked the items of the objective that has its name ("vqa": "vqa" or "zoo/vqa"); one
whose name no objective has, and the base, items of all. They are taken evenly from the objectives,
and evenly spaced from each, so that the choice depends on nothing but the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.checkpoints.statistics import digest
from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError, DataError
from evomerge.methods.context import BASE
from evomerge.scoring.data import Item, content_key
from evomerge.scoring.objectives import Objective


def choose(
    objectives: Sequence[Objective],
    experts: Sequence[str],
    count: int,
    items_for: Mapping[str, Sequence[str]],
) -> dict[str, tuple[Item, ...]]:
    """At most `count` items for each expert and for the base, in a fixed order.

    `items_for` gives the objectives of a source, by their names or the last part of them.

    Raises:
        ConfigError: `items_for` names no source or no objective, or an expert is called "base".
        DataError: the objectives of a source have no items.
    """
    if BASE in experts:
        raise ConfigError(f"an expert is called {BASE!r}, the name of the base; rename it")
    sources = [BASE, *experts]
    for name in items_for:
        if name not in sources:
            raise ConfigError(f"--items-for {name!r} is no expert; {did_you_mean(name, sources)}")
    chosen = {}
    for source in sources:
        if source in items_for:
            used = [o for name in items_for[source] for o in _called(objectives, name)]
        else:
            used = [o for o in objectives if source in (o.name, _last(o.name))] or list(objectives)
        chosen[source] = _spread(_pools(used), count)
        if not chosen[source]:
            raise DataError(
                f"{', '.join(o.name for o in used)}: no items in the search split to calibrate "
                f"{source!r} on; name other objectives with --items-for"
            )
    return chosen


def items_sha256(items: Sequence[Item]) -> str:
    """Hash of what is asked and answered, in this order."""
    return digest([[content_key(item), item.answer] for item in items])


def _called(objectives: Sequence[Objective], name: str) -> list[Objective]:
    found = [o for o in objectives if name in (o.name, _last(o.name))]
    if not found:
        known = [o.name for o in objectives]
        raise ConfigError(f"--items-for names objective {name!r}; {did_you_mean(name, known)}")
    return found


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _pools(objectives: Sequence[Objective]) -> list[list[Item]]:
    """The items of each objective without those that ask and answer the same as an earlier one."""
    seen: set[str] = set()
    pools: list[list[Item]] = []
    for objective in objectives:
        pools.append([])
        for item in objective.items("search"):
            key = f"{content_key(item)} {item.answer}"
            if key not in seen:
                seen.add(key)
                pools[-1].append(item)
    return pools


def _spread(pools: Sequence[Sequence[Item]], count: int) -> tuple[Item, ...]:
    """One after the other from each pool, evenly spaced within it."""
    shares = _shares([len(pool) for pool in pools], count)
    taken = [
        [pool[i * len(pool) // share] for i in range(share)]
        for pool, share in zip(pools, shares, strict=True)
    ]
    return tuple(each[i] for i in range(max(shares)) for each in taken if i < len(each))


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` divided evenly; what a small pool lacks is taken from the others."""
    shares = [0] * len(sizes)
    while sum(shares) < min(count, sum(sizes)):
        for i in sorted(range(len(sizes)), key=lambda i: shares[i]):
            if shares[i] < sizes[i]:
                shares[i] += 1
                break
    return shares
