"""Learners: ways to learn the coefficients of a merge by gradients from a few items.

What a learner gives is an ordinary recipe: ``method`` with a weight for each expert in each group
of tensors. Here they are only declared, so that they can be listed without torch; their code is in
``evomerge.learning``. Parameters say how learning goes; their ranges are what is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.methods.registry import Needs, Parameter

Settings = Mapping[str, float]
FAMILY = "learned"


@dataclass(frozen=True)
class Learner:
    """A declared learner.

    ``method`` is that of the recipes it gives; ``items`` what it reads of an item: its prompt
    alone, its prompt as the expert of that task answers it, or its prompt and reference answer.
    """

    name: str
    summary: str
    formula: str
    source: str
    cost: str
    parameters: tuple[Parameter, ...]
    method: str
    items: Literal["prompts", "prompts of each expert's task", "prompts and answers"]
    family: str = FAMILY
    needs: Needs = "gradients"

    def settings(self, given: Mapping[str, float]) -> dict[str, float]:
        """Every parameter, with the default of those not given; integers are whole numbers.

        Raises:
            ConfigError: an unknown name, or a value outside the accepted range.
        """
        known = {p.name: p for p in self.parameters}
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"learner {self.name!r} has no setting {name!r}; "
                    f"{did_you_mean(name, list(known))}"
                )
        return {p.name: _checked(p, given.get(p.name, p.default)) for p in self.parameters}


def _checked(parameter: Parameter, value: float) -> float:
    whole = parameter.integer
    in_range = math.isfinite(value) and parameter.low <= value <= parameter.high
    if not in_range or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(
            f"setting {parameter.name!r}: expected {kind} from {parameter.low:g} to "
            f"{parameter.high:g}, found {value:g}"
        )
    return int(value) if whole else float(value)


def _items(default: int) -> Parameter:
    return Parameter(
        "items", "items drawn from each objective's search split", default, 1, 1e6, integer=True
    )


def _batch(default: int) -> Parameter:
    return Parameter("batch", "items of each objective in one step", default, 1, 1e6, integer=True)


def _steps(default: int) -> Parameter:
    return Parameter("iterations", "steps of the optimiser", default, 1, 1e6, integer=True)


def _rate(default: float, of: str) -> Parameter:
    return Parameter("rate", f"learning rate of {of}", default, 0.0, 10.0)


def _initial(default: float, low: float, high: float) -> Parameter:
    return Parameter("initial", "every coefficient at the start", default, low, high)


_TOKENS = Parameter(
    "tokens", "longest own answer of the model whose tokens are read", 16, 1, 4096, integer=True
)

_ADAMERGING = (_items(16), _batch(16), _steps(500), _rate(1e-3, "Adam"), _initial(0.3, 0.0, 1.0))

_EXPERT_MERGING = (
    _items(5),
    Parameter("epochs", "passes over the items", 1, 1, 1e4, integer=True),
    Parameter("accumulate", "items in one step", 8, 1, 1e6, integer=True),
    _rate(0.5, "AdamW, in the logit of the coefficient"),
    _initial(0.1, 0.001, 0.999),
    Parameter("temperature", "of both softmaxes of the logit alignment", 1.0, 0.01, 100.0),
    Parameter("hidden", "weight of the hidden states' alignment", 1.0, 0.0, 1e4),
    Parameter(
        "depth", "which hidden state is aligned: 0 the embeddings, 1 the last block", 0.5, 0.0, 1.0
    ),
    Parameter("stability", "weight γ of what keeps coefficients near the start", 5.0, 0.0, 1e4),
    _TOKENS,
)

_ENTROPY = "Yang et al. 2024, AdaMerging (arXiv 2310.02575), "
_ALIGNMENT = "Zhang et al. 2025, Expert Merging (arXiv 2509.25712)"

_LEARNERS = (
    Learner(
        name="adamerging",
        summary="Coefficients under which the merged model is surest of its own answers.",
        formula="min_λ Σ_tasks mean H(p(· | prompt, answer so far; θ₀ + Σ λᵢ τᵢ)),  λ in [0, 1]",
        source=_ENTROPY + "layer-wise variant; for models that generate, H is averaged "
        "over the tokens of the answer that the model gives at the start",
        cost="500 forward and backward passes over the batch, each with a merge",
        parameters=(*_ADAMERGING, _TOKENS),
        method="task_arithmetic",
        items="prompts",
    ),
    Learner(
        name="adamerging++",
        summary="AdaMerging on task vectors that TIES has trimmed and freed of sign conflicts.",
        formula="as adamerging, with θ₀ + Σ_{i agrees} λᵢ τ̂ᵢ,  τ̂ᵢ = trim(τᵢ)",
        source=_ENTROPY + "AdaMerging++; variant: trim per tensor, sign elected by Σ λᵢ τ̂ᵢ (the "
        "published code trims over the whole model and elects once, without λ)",
        cost="500 forward and backward passes over the batch, each with a merge",
        parameters=(
            *_ADAMERGING,
            Parameter("density", "share of each task vector's entries kept", 0.2, 0.0, 1.0),
            _TOKENS,
        ),
        method="ties",
        items="prompts",
    ),
    Learner(
        name="expert_merging",
        summary="Coefficients under which hidden states and logits agree with each task's expert.",
        formula="min_a Σ_tasks T² KL(p_expert ‖ p_merged) + β ‖h_expert − h_merged‖² + "
        "γ mean_l Σᵢ |αₗᵢ − α₀|,  α = sigmoid(a)",
        source=_ALIGNMENT + ", with the defaults of its code (github.com/Littleor/ExpertMerging); "
        "no task weights",
        cost="one forward pass of each expert; 4 forward and backward passes, each with a merge",
        parameters=_EXPERT_MERGING,
        method="task_arithmetic",
        items="prompts of each expert's task",
    ),
    Learner(
        name="expert_merging++",
        summary="Expert Merging with more coefficients where they matter, and none where not.",
        formula="Iₗ ∝ Σᵢ |αₗᵢ| ‖τₗᵢ‖₁ from a first run;  mₗ = ⌊B Iₗ^κ / Σ I^κ⌋ coefficients for "
        "group l, fixed at α₀ where mₗ = 0",
        source=_ALIGNMENT + ", Expert Merging++; reading: a recipe has one weight for a tensor, so "
        "the paper's flat chunks inside a tensor become groups of blocks and module kinds; a group "
        "is cut into at most as many as it holds",
        cost="twice expert_merging",
        parameters=(
            *_EXPERT_MERGING,
            Parameter(
                "budget", "coefficients to hand out, as a share of the groups", 1.0, 0.0, 100
            ),
            Parameter("power", "κ: above 1 the important groups get still more", 1.0, 0.0, 10.0),
        ),
        method="task_arithmetic",
        items="prompts of each expert's task",
    ),
    Learner(
        name="self_positioning",
        summary="Coefficients that make the reference answers likeliest, by gradient descent.",
        formula="min_λ Σ_tasks mean −log p(answer | prompt; θ₀ + Σ λᵢ τᵢ)",
        source="Li et al. 2024, Self Positioning (arXiv 2410.15035), from its abstract: gradient "
        "descent in the span of the task vectors; optimiser, rate and start are ours, and a "
        "weight for each group in place of one for each expert (a space of one group gives that)",
        cost="100 forward and backward passes over the batch, each with a merge",
        parameters=(_items(32), _batch(32), _steps(100), _rate(0.02, "Adam"), _initial(0.3, -2, 2)),
        method="task_arithmetic",
        items="prompts and answers",
    ),
)


def all_learners() -> tuple[Learner, ...]:
    """All learners, by name."""
    return tuple(sorted(_LEARNERS, key=lambda learner: learner.name))


def get_learner(name: str) -> Learner:
    """The learner of that name; ConfigError with the nearest name otherwise."""
    known = {learner.name: learner for learner in _LEARNERS}
    if name not in known:
        raise ConfigError(f"unknown learner {name!r}; {did_you_mean(name, sorted(known))}")
    return known[name]
