"""The model card of an exported point: what it is made of, how it scored, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge import __version__
from evomerge.ledger.fold import Candidate
from evomerge.ledger.results import Split
from evomerge.recipe import Merged, Recipe
from evomerge.report.provenance import Provenance
from evomerge.report.terminal import show
from evomerge.report.view import View

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def candidate_card(
    view: View,
    candidate: Candidate,
    origin: Provenance,
    digest: str | None,
    note: str = "",
    adapter: bool = False,
) -> str:
    """Model card of a candidate of a study, with its scores beside every reference point.

    Its metadata are those of the Hub: base models, licence, and the scores as a model index.
    ``digest`` is that of what is exported, which may be an ``adapter``; ``note`` stands below the
    scores.
    """
    split = "held-out" if candidate.held_out else "search"
    lines = [
        f"| model | {' | '.join(view.columns)} |",
        f"|---{'|---:' * len(view.columns)}|",
        _row(view, candidate, "this model"),
        *(_row(view, reference, reference.label) for reference in view.state.references()),
    ]
    about = (
        f"Candidate {candidate.label} of the evomerge study `{view.name}`, which scored "
        f"{view.state.ended('scored')} candidates with "
        f"`{view.study['experiment']['search']['algorithm']}`."
    )
    scores = "\n".join(
        [f"## Scores\n\nOn the {split} split, ± standard error over items.\n", *lines]
    )
    text = f"{scores}\n\n{note}" if note else scores
    results = _results(view, candidate)
    return _card(view.recipe(candidate), origin, about, text, digest, adapter, results, view.name)


def recipe_card(recipe: Recipe, origin: Provenance) -> str:
    """Model card of a static merge, which has no scores."""
    return _card(recipe, origin, "A static merge: it was not scored.", "", None)


def _results(view: View, candidate: Candidate) -> list[EvalResult]:
    """The scores of the objectives, for the metadata."""
    from huggingface_hub import EvalResult

    split: Split = "held_out" if candidate.held_out else "search"
    found = {name: view.value(candidate, name, split) for name in view.objectives}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name,
            dataset_split=split.replace("_", "-"),
            metric_type=_metric(view.study["objectives"][name]),
            metric_value=round(value.value, 6),
            metric_args=None if value.se is None else {"standard_error": round(value.se, 6)},
        )
        for name, value in found.items()
        if value is not None
    ]


def _metric(objective: Mapping[str, Any]) -> str:
    """``exact_match``, ``perplexity``, ...: the metric if there is one, else the kind."""
    metric = objective.get("metric") or objective["kind"]
    return str(metric["name"] if isinstance(metric, Mapping) else metric)


def _row(view: View, candidate: Candidate, label: str) -> str:
    split = "held_out" if candidate.held_out else "search"
    cells = [show(view.value(candidate, name, split)) or "-" for name in view.columns]  # type: ignore[arg-type]
    return f"| {label} | {' | '.join(cells)} |"


def _card(
    recipe: Recipe,
    origin: Provenance,
    about: str,
    scores: str,
    digest: str | None,
    adapter: bool = False,
    results: Sequence[EvalResult] = (),
    name: str = "",
) -> str:
    listed = "\n".join(_ingredients(recipe))
    weights = f"\n- digest of the weights: `{digest}`" if digest else ""
    again = ", which merges them into a whole checkpoint" if adapter else ""
    parts = [
        f"---\n{_metadata(origin, adapter, results, name)}\n---",
        f"# Merged {'LoRA adapter' if adapter else 'model'}\n\n{about}",
        scores,
        origin.warning(),
        f"## Made of\n\n{listed}\n\n- method: `{recipe.method}`\n- seed: {recipe.seed}{weights}",
        f"## Make it again\n\n`recipe.yaml` beside this file defines every weight: "
        f"`evomerge merge recipe.yaml --out DIR` (evomerge {__version__}){again}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(origin: Provenance, adapter: bool, results: Sequence[EvalResult], name: str) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=list(origin.repositories) or None,
        base_model_relation="merge" if origin.repositories else None,
        library_name="peft" if adapter else "transformers",
        license=origin.licence,
        tags=["merge", "evomerge"],
        model_name=name if results else None,
        eval_results=list(results) or None,
    )
    return str(data.to_yaml())


def _ingredients(recipe: Recipe, depth: int = 0) -> list[str]:
    """One line a source; those of a merge within the recipe stand indented below its name."""
    lines = []
    named = {"base": recipe.base, **recipe.experts}
    named |= {key: found for key in ("anchor", "statistics") if (found := getattr(recipe, key))}
    for name, source in named.items():
        start = f"{'  ' * depth}- {name}: "
        if isinstance(source, Merged):
            lines.append(f"{start}a merge by `{source.merge.method}` of")
            lines += _ingredients(source.merge, depth + 1)
        else:
            checked = f" (sha256 `{source.sha256}`)" if source.sha256 else ""
            lines.append(f"{start}`{source.path}`{checked}")
    return lines
