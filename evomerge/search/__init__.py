"""Who proposes candidates; each algorithm's library is loaded only when it is chosen."""

from __future__ import annotations

from evomerge.search.base import Search, SearchSettings, check_settings


def make_search(settings: SearchSettings, dimension: int, objectives: int) -> Search:
    """The search that `settings` name, over [0, 1]^dimension, before any call.

    Raises what `check_settings` does, and MissingDependency where its library is not installed.
    """
    algorithm, options = check_settings(settings, objectives)
    if algorithm.library == "nevergrad":
        from evomerge.search.nevergrad import NevergradSearch

        return NevergradSearch(algorithm.name, settings.seed, options, dimension, objectives)
    if algorithm.library == "optuna":
        from evomerge.search.optuna import OptunaSearch

        return OptunaSearch(algorithm.name, settings.seed, options, dimension, objectives)
    from evomerge.search.sampling import QmcSearch, RandomSearch

    sampling = RandomSearch if algorithm.name == "random" else QmcSearch
    return sampling(settings.seed, dimension)
