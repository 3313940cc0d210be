"""Who proposes candidates; each algorithm's library is loaded only when it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError
from evomerge.search.algorithms import SearchSettings, check_settings, find_algorithm
from evomerge.search.base import Measured, Search

if TYPE_CHECKING:
    from evomerge.space import Gene


def make_search(
    settings: SearchSettings,
    dimension: int,
    objectives: int,
    genes: Sequence[Gene] = (),
    measured: Measured | None = None,
) -> Search:
    """The search that `settings` name, over [0, 1]^dimension, before any call.

    Evo-Merging, MAP, DeMix and registered searches may ask what the `genes` mean; guided searches
    how candidates are `measured`.

    Raises what `check_settings` does, and MissingDependency where its library is not installed.
    """
    algorithm, options = check_settings(settings, objectives)
    if algorithm.make is not None:
        return algorithm.make(settings.seed, options, genes, objectives)
    if algorithm.name == "evo-merging":
        from evomerge.search.evo_merging import EvoMergingSearch

        return EvoMergingSearch(settings.seed, options, genes)
    if algorithm.name == "auto":
        return make_search(
            _chosen(settings, dimension, measured), dimension, objectives, genes, measured
        )
    if algorithm.name == "guided":
        from evomerge.search.guided import GuidedSearch

        return GuidedSearch(settings.seed, options, dimension, objectives, genes, measured)
    if algorithm.name.startswith("map"):
        from evomerge.search.map import map_search

        return map_search(algorithm.name, settings.seed, options, dimension, genes)
    if algorithm.name == "mm-mo":
        from evomerge.search.mm_mo import mm_mo_search

        return mm_mo_search(settings.seed, options, dimension)
    if algorithm.name == "demix":
        from evomerge.search.demix import demix_search

        return demix_search(settings.seed, options, dimension, genes)
    if algorithm.library == "nevergrad":
        from evomerge.search.nevergrad import NevergradSearch

        return NevergradSearch(algorithm.name, settings.seed, options, dimension, objectives)
    if algorithm.library == "optuna":
        from evomerge.search.optuna import OptunaSearch

        return OptunaSearch(algorithm.name, settings.seed, options, dimension, objectives)
    from evomerge.search.sampling import QmcSearch, RandomSearch

    sampling = RandomSearch if algorithm.name == "random" else QmcSearch
    return sampling(settings.seed, dimension)


def _chosen(settings: SearchSettings, dimension: int, measured: Measured | None) -> SearchSettings:
    """What `auto` chooses for an unknown budget."""
    from evomerge.search.auto import choose

    blocks = measured.blocks if measured else ()
    items = sum(len(positions) for block in blocks for positions in block.values())
    choice = choose(dimension, items, bool(measured and measured.signals), None)
    return SearchSettings(choice.algorithm, settings.seed, choice.options)


def check_space(settings: SearchSettings, genes: Sequence[Gene], candidates: int | None) -> None:
    """ConfigError where a search cannot do with a space, or a budget in candidates, what it is for.

    The settings are those that `check_settings` took.
    """
    if settings.algorithm == "demix":
        from evomerge.search import demix

        demix.check_genes(genes)
    if settings.algorithm != "evo-merging":
        return
    from evomerge.search.evo_merging import check_genes

    check_genes(genes)
    algorithm = find_algorithm("evo-merging")
    first = settings.options.get("denoising", algorithm.options["denoising"].default)
    if candidates is not None and first is not None and candidates <= first:
        raise ConfigError(
            f"search option evo-merging.denoising is {first}, but the budget is {candidates} "
            "candidates: none is left for the second stage; about a third of the budget is usual"
        )
