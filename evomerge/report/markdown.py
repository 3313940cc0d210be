"""The report as Markdown: what can be read without a browser."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from evomerge import __version__
from evomerge.ledger.fold import Candidate
from evomerge.report.importance import Importance
from evomerge.report.summary import Summary
from evomerge.report.terminal import show

FEW = 10  # rows of the genes that matter, and of failures


def markdown(summary: Summary, run: Path) -> str:
    """Front, progress, genes that matter, cost and lineage, as tables."""
    parts = [
        f"# {_text(summary.view.name)}",
        _lead(summary),
        "## Front and reference points",
        _front(summary),
        "## Progress",
        _progress(summary),
        "## Which genes matter",
        _importance(summary),
        "## Cost",
        _cost(summary),
        *_failures(summary),
        "## Lineage, and how to reproduce it",
        _lineage(summary, run),
    ]
    return "\n\n".join(parts) + "\n"


def _lead(summary: Summary) -> str:
    view = summary.view
    scored = view.state.ended("scored")
    search = view.study["experiment"]["search"]
    text = (
        f"{scored} candidates of {view.space.dimension} genes scored by {search['algorithm']}; "
        f"{len(summary.front)} on the front."
    )
    if dropped := view.state.ended("dropped"):
        text += f" {dropped} more were dropped when a part of their items showed them dominated."
    if probed := view.state.ended("probed"):
        text += f" {probed} were only probed."
    if summary.knee is not None:
        name = view.optimise.names[0]
        value = show(view.value(summary.knee, name, summary.split))
        text += f" The knee is {summary.knee.label}, with {_name(summary, name)} {value}."
    return text if view.state.finished else f"{text} The run has not finished."


def _front(summary: Summary) -> str:
    split = "held-out" if summary.split == "held_out" else "search"
    rows = []
    for candidate in (*summary.front, *summary.view.state.references()):
        values = [summary.view.value(candidate, n, summary.split) for n in summary.columns]
        rows.append([_label(summary, candidate), *(show(v) or "-" for v in values)])
    table = _table(["candidate", *(_name(summary, n) for n in summary.columns)], rows)
    return f"On the {split} split, ± standard error over items.\n\n{table}"


def _name(summary: Summary, objective: str) -> str:
    return _text(summary.label(objective))


def _label(summary: Summary, candidate: Candidate) -> str:
    return f"**{candidate.label}** (knee)" if candidate is summary.knee else _text(candidate.label)


def _progress(summary: Summary) -> str:
    steps = summary.history.steps
    if not steps:
        return "No candidate has been scored yet."
    chosen = sorted({round(i * (len(steps) - 1) / 10) for i in range(11)})
    rows = []
    for step in (steps[i] for i in chosen):
        spent = [f"{step.evaluations:.4g}", f"{step.items}", f"{step.seconds:.1f}"]
        rows.append([f"#{step.candidate}", *spent, f"{step.hypervolume:.4f}"])
    return _table(["candidate", "evaluations", "items", "seconds", "hypervolume"], rows)


def _importance(summary: Summary) -> str:
    found = summary.importance
    if found is None:
        return "At least 20 scored candidates with different values are needed to say."
    explained, spread = found.explained[0], found.explained_spread[0]
    return (
        f"By how much a forest's R² of {_name(summary, found.targets[0])} drops when a gene is "
        f"shuffled among {found.candidates} candidates (mean and standard deviation over five "
        f"folds). The forest itself explains R² = {explained:.3f} ± {spread:.3f} of what it has "
        f"not seen; near 0, the drops are noise.\n\n{_drops(found)}"
    )


def _drops(found: Importance) -> str:
    order = sorted(range(len(found.groups)), key=lambda i: -found.mean[i, 0])
    several = [i for i in order if found.groups[i].kind != "gene"][:FEW]
    single = [i for i in order if found.groups[i].kind == "gene"][:FEW]
    rows = []
    for i in (*several, *single):
        group = found.groups[i]
        drop = f"{found.mean[i, 0]:.3f} ± {found.spread[i, 0]:.3f}"
        rows.append([group.kind, f"`{_text(group.label)}`", drop])
    return _table(["kind", "gene or group", "drop of R²"], rows)


def _cost(summary: Summary) -> str:
    history = summary.history
    parts = list(dict.fromkeys(p for spent in history.stages.values() for p in spent.seconds))
    rows = [
        [
            stage,
            f"{spent.evaluations}",
            f"{spent.items}",
            f"{spent.tokens}",
            *(f"{spent.seconds.get(part, 0.0):.1f}" for part in parts),
        ]
        for stage, spent in history.stages.items()
        if spent.evaluations or spent.parts
    ]
    table = _table(["", "evaluations", "items", "tokens", *(f"{p}, s" for p in parts)], rows)
    waiting = (
        f"{history.idle:.1f} s of it with nothing evaluated"
        if history.idle is not None
        else "evaluations overlapped, so how long workers waited is not known"
    )
    return f"{table}\n\nDriver time {history.wall:.1f} s; {waiting}."


def _failures(summary: Summary) -> Iterable[str]:
    failed = summary.view.failed()
    if not failed:
        return
    yield "## Failures"
    rows = [[_text(c.label), _text(c.reason or "")] for c in failed[:FEW]]
    more = f"\n\nand {len(failed) - FEW} more" if len(failed) > FEW else ""
    yield _table(["candidate", "reason"], rows) + more


def _lineage(summary: Summary, run: Path) -> str:
    from evomerge.report.reproduce import experiment_yaml

    study = summary.view.study
    sources = {"base": study["base"], **study["experts"]}
    rows = [[_text(n), f"`{_text(s['path'])}`", f"`{s['sha256']}`"] for n, s in sources.items()]
    place = shlex.quote(str(run))
    return (
        f"{_table(['name', 'path', 'sha256 of the content'], rows)}\n\n"
        f"    evomerge export {place} --pick knee --rescore\n"
        f"    evomerge run experiment.yaml --out NEW\n\n"
        f"Made by evomerge {__version__}. The second command runs this file, the same study:\n\n"
        f"```yaml\n{experiment_yaml(summary.view)}```"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _text(text: str) -> str:
    """Text that may stand in a table and holds no markup."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("|", "\\|")
