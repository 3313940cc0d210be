"""Everything that the page shows, as plain data, from the ledger."""

from __future__ import annotations

import datetime
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import __version__
from evomerge.front import hypervolume
from evomerge.ledger.fold import Candidate, Status
from evomerge.ledger.results import Split, vector
from evomerge.report.html.items import items_payload
from evomerge.report.html.packing import genomes, pack
from evomerge.report.importance import Importance
from evomerge.report.summary import Summary
from evomerge.report.view import View

GENOMES = 1_300_000  # bytes of all genomes; beyond it they are stored more coarsely
IN_PART: tuple[Status, ...] = ("dropped", "probed")
Payload = dict[str, Any]


def payload(summary: Summary, run: Path, with_examples: bool) -> Payload:
    """The page's data. Candidates are rows, in the order of the ledger; ``ids`` names them.

    Those that were only seen in part are none: they are counted.
    """
    view = summary.view
    candidates = [c for c in view.state.candidates.values() if c.status not in IN_PART]
    return {
        "name": view.name,
        "run": str(run),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "finished": view.state.finished,
        "in_part": {status: n for status in IN_PART if (n := view.state.ended(status))},
        "version": __version__,
        "columns": _columns(summary),
        "optimise": {
            "names": view.optimise.names,
            "signs": view.optimise.signs,
            "reference": view.optimise.reference_point,
        },
        "candidates": _candidates(summary, candidates),
        "values": {
            split: _values(view, candidates, summary.columns, split)
            for split in ("search", "held_out")
        },
        "experts": list(view.study["experiment"]["experts"]),
        "genes": [[g.name, g.low, g.high, g.log] for g in view.space.genes],
        "genomes": _genomes(view, candidates),
        "grids": [asdict(grid) for grid in summary.grids],
        "history": _history(summary),
        "importance": _importance(summary.importance),
        "items": items_payload(summary, with_examples),
        "lineage": _lineage(view, run),
    }


def _columns(summary: Summary) -> list[dict[str, Any]]:
    view = summary.view
    kinds = {name: described["kind"] for name, described in view.study["objectives"].items()}
    return [
        {
            "name": name,
            "label": summary.label(name),
            "minimised": view.directions.get(name) == "minimise",
            "kind": kinds.get(name, "aggregate"),
        }
        for name in summary.columns
    ]


def _candidates(summary: Summary, candidates: Sequence[Candidate]) -> dict[str, Any]:
    view = summary.view
    return {
        "ids": [c.id for c in candidates],
        "names": [c.name for c in candidates],
        "status": [c.status for c in candidates],
        "reasons": {c.id: c.reason for c in candidates if c.status == "failed"},
        "front": [c.id for c in summary.front],
        "knee": summary.knee.id if summary.knee else None,
        "within_noise": [c.id for c in summary.within_noise],
        "digests": {
            c.id: c.scores.digest
            for c in (*view.state.references(), *summary.front)
            if c.scores is not None
        },
    }


def _values(
    view: View, candidates: Sequence[Candidate], columns: Sequence[str], split: Split
) -> dict[str, Any]:
    """Values and standard errors: (candidates, columns)."""
    found = [[view.value(c, name, split) for name in columns] for c in candidates]
    values = [[np.nan if v is None else v.value for v in row] for row in found]
    errors = [[np.nan if v is None or v.se is None else v.se for v in row] for row in found]
    counts = {name: v.n for row in found for name, v in zip(columns, row, strict=True) if v}
    return {
        "value": pack(np.array(values, dtype=np.float64), "f8"),
        "error": pack(np.array(errors, dtype=np.float64), "f8"),
        "items": counts,
    }


def _genomes(view: View, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Genomes of the candidates that have one; ``rows`` gives each candidate's, or null."""
    having = [c for c in candidates if c.genome is not None]
    rows = {c.id: i for i, c in enumerate(having)}
    units = np.array([c.genome for c in having], dtype=np.float64)
    units = units.reshape(len(having), view.space.dimension)
    return {**genomes(units, GENOMES), "rows": [rows.get(c.id) for c in candidates]}


def _history(summary: Summary) -> dict[str, Any]:
    view, history = summary.view, summary.history
    optimise = view.optimise
    pairs = zip(optimise.signs, optimise.reference_point, strict=True)
    origin = [sign * value for sign, value in pairs]
    static = [
        vector(c.scores, optimise, view.directions)
        for c in view.state.references()
        if c.scores is not None
    ]
    return {
        "candidates": [step.candidate for step in history.steps],
        "evaluations": [round(step.evaluations, 2) for step in history.steps],
        "items": [step.items for step in history.steps],
        "seconds": [round(step.seconds, 2) for step in history.steps],
        "hypervolume": [float(f"{step.hypervolume:.7g}") for step in history.steps],
        "static": hypervolume(static, origin) if static else None,
        "stages": {name: asdict(spent) for name, spent in history.stages.items()},
        "wall": history.wall,
        "busy": history.busy,
        "idle": history.idle,
        "sessions": history.sessions,
        "lost": history.lost,
        "started": history.started,
        "ended": history.ended,
    }


def _importance(found: Importance | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "groups": [asdict(group) for group in found.groups],
        "targets": found.targets,
        "mean": pack(found.mean, "f4"),
        "spread": pack(found.spread, "f4"),
        "explained": found.explained.tolist(),
        "explained_spread": found.explained_spread.tolist(),
        "candidates": found.candidates,
    }


def _lineage(view: View, run: Path) -> dict[str, Any]:
    from evomerge.report.reproduce import experiment_yaml

    study = view.study
    sources = {"base": study["base"], **study["experts"]}
    if "statistics" in study:
        sources["statistics"] = study["statistics"]
    return {
        "sources": [[name, s["path"], s["sha256"]] for name, s in sources.items()],
        "directions": study["experiment"].get("directions", {}),
        "objectives": study["objectives"],
        "space": study["experiment"]["space"],
        "search": study["experiment"]["search"],
        "backend": study["experiment"]["backend"],
        "experiment": experiment_yaml(view),
        "place": shlex.quote(str(run)),
        "versions": {"evomerge": __version__, "Python": platform.python_version()},
    }
