"""The seam between the engine and whatever runs a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Protocol

from evomerge.scoring.requests import Likelihood, Request, Response

if TYPE_CHECKING:
    import torch

    from evomerge.merged_adapter import MergedAdapter
    from evomerge.recipe import Recipe
    from evomerge.scoring.measures import WeightStats

    Weights = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


Weigh = Callable[[int, Sequence[Likelihood]], Sequence[float]]
"""Of an item, by its place, and the responses to its requests: by each of them, the derivative of
what gradients are wanted of by its log-probability."""


class Backend(Protocol):
    """A model that stays in memory while its weights change from candidate to candidate.

    What `run` answers depends on the base, the last `load` and the request alone: not on earlier
    loads or runs, nor on the order of the requests.
    """

    spent: Mapping[str, float]
    """Seconds of the last `run` by phase (`prefill`, `decode`); none where they are not known."""

    def open(self) -> None:
        """Brings up the base model. Raises InputError if the backend cannot run it."""
        ...

    def load(self, weights: Weights, kept: Set[str] = frozenset()) -> None:
        """Makes the model base + `weights`: every tensor that is not named returns to the base.

        Tensors that `kept` names stay as the load before, which did not raise, has left them.
        Names and shapes are those of the base checkpoint's files; pairs may come one at a time, so
        that a large model is never held twice. Raises InputError for a name, shape or dtype that
        the backend cannot hold exactly. After a load that raises, load again before `run`.
        """
        ...

    def destination(self, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        """The model's own memory of a tensor, of that dtype or wider, contiguous.

        Who makes the next weights may write into it, and must then give it to the load that is in
        progress or that comes next. None if the tensor has to be handed over as another one.
        """
        ...

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Responses in the order of the requests. Raises CandidateError if the model is broken
        (its output is not finite), InputError for a request that no candidate could answer."""
        ...

    def close(self) -> None:
        """Frees the model; harmless when it is not open."""
        ...


class Differentiable(Protocol):
    """A backend that also says how log-probabilities change with the live model's weights."""

    spent: Mapping[str, float]
    """Seconds of the last call by phase (`prefill`, `backward`)."""

    def gradients(
        self, items: Sequence[Sequence[Request]], weigh: Weigh, names: Iterable[str]
    ) -> tuple[list[list[Likelihood]], dict[str, torch.Tensor]]:
        """Responses to the requests of each item, none a `Generate`, as `run` gives them but for
        rounding; and the gradients at the weights of these names, of those that have any.

        A tied weight is named once. The gradients are the caller's; the model stays as it was.
        Raises what `run` does.
        """
        ...


class Candidates(Protocol):
    """Puts candidates into a live model, one after the other."""

    def load(self, recipe: Recipe) -> None:
        """Makes the live model that of the recipe. Raises CandidateError if a weight of it is not
        finite."""
        ...

    def digests(self) -> dict[str, str]:
        """The digests of the tensors that are not as the base's files hold them."""
        ...

    def counts(self) -> WeightStats:
        """How much of the live model was moved, and how much of that equals the base."""
        ...

    def close(self) -> None:
        """Ends what makes them."""
        ...


class AdapterBackend(Protocol):
    """A model whose weights stay: candidates are LoRA adapters beside it, several at once.

    What `run` answers to a request depends on the base, the adapter in its slot and the request
    alone: not on what else is asked, nor on adapters that were placed before.
    """

    slots: int
    """How many candidates can be placed at once."""

    def open(self) -> None:
        """Brings up the base model. Raises InputError if the backend cannot run it."""
        ...

    def place(self, adapters: Sequence[MergedAdapter | None]) -> None:
        """Makes slot i the base with `adapters[i]`, or the base itself for None.

        Raises InputError for an adapter that the backend cannot apply whole.
        """
        ...

    def run(self, requests: Sequence[tuple[int, Request]]) -> list[Response]:
        """Responses to (slot, request), in their order. Raises what `Backend.run` does."""
        ...

    def close(self) -> None:
        """Frees the model; harmless when it is not open."""
        ...
