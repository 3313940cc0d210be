"""Whole processes: ``evomerge merge`` against mergekit's command line, and how evomerge scales.

    python -m benchmarks.merge --mergekit /path/to/environment/bin/python

Every command starts cold: a process of its own, no catalogue of earlier runs. (The files lie in the
system's cache for both.) The two programs take turns, so that a ratio comes from one stretch of
time. evomerge verifies and syncs what it writes, mergekit does neither. Results, with the machine
and its load, go to ``benchmarks/results/merge.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.models import LAYOUTS, write_model

RESULTS = Path(__file__).parent / "results" / "merge.json"
# method: (evomerge's parameters, mergekit's for all, mergekit's for each model, experts)
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    "linear": ({"weight": 1.0}, {}, {"weight": 1.0}, 4),
    "task_arithmetic": ({"weight": 0.3}, {}, {"weight": 0.3}, 4),
    "ties": ({"weight": 1.0, "density": 0.2}, {}, {"weight": 1.0, "density": 0.2}, 4),
    "dare_ties": ({"weight": 1.0, "density": 0.5}, {}, {"weight": 1.0, "density": 0.5}, 4),
    "slerp": ({"t": 0.5}, {"t": 0.5}, {}, 1),
}


def timed(command: Sequence[str], env: Mapping[str, str], limit: float = 900) -> dict[str, float]:
    """Wall and CPU seconds and peak resident megabytes of one process and its children."""
    code = (
        "import json, resource, subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
        "wall = time.perf_counter() - start\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "sys.stderr.buffer.write(done.stderr[-2000:]) if done.returncode else None\n"
        "print(json.dumps({'wall_s': wall, 'cpu_s': used.ru_utime + used.ru_stime,\n"
        "                  'peak_mb': used.ru_maxrss / 1e3}))\n"
        "sys.exit(done.returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=dict(env), capture_output=True, text=True, timeout=limit, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def evomerge(folder: Path, method: str, base: Path, experts: Sequence[Path]) -> dict[str, float]:
    """One cold merge with evomerge."""
    recipe = folder / f"{method}.yaml"
    group = {"tensors": "*/*/*", **METHODS[method][0]}
    recipe.write_text(
        yaml.safe_dump(
            {
                "base": str(base),
                "experts": {path.name: str(path) for path in experts},
                "method": method,
                "parameters": [group],
            }
        )
    )
    cache, out = folder / "cache", folder / "out"
    env = {**os.environ, "EVOMERGE_CACHE": str(cache)}
    try:
        return timed(
            [sys.executable, "-m", "evomerge", "merge", str(recipe), "--out", str(out)], env
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)


def mergekit(
    folder: Path, method: str, base: Path, experts: Sequence[Path], python: str, path: str
) -> dict[str, float]:
    """One merge with mergekit's command line."""
    config = folder / f"{method}.yml"
    _, shared, each, _ = METHODS[method]
    models = [{"model": str(path), "parameters": each} for path in experts]
    content: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16", "models": models}
    if method != "linear":
        content["base_model"] = str(base)
    if method == "slerp":
        content["models"] = [{"model": str(base)}, *models]
    if shared:
        content["parameters"] = shared
    config.write_text(yaml.safe_dump(content))
    out = folder / "mergekit-out"
    env = {**os.environ, **({"PYTHONPATH": path} if path else {})}
    command = [python, "-m", "mergekit.scripts.run_yaml", str(config), str(out)]
    try:
        return timed([*command, "--no-copy-tokenizer", "--quiet"], env)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def against(folder: Path, python: str, path: str, repeats: int, methods: Sequence[str]) -> Any:
    """Each method in turns; medians, and the ratio of the medians."""
    base, experts = models(folder, "160M", 4, 0.0)
    found: dict[str, Any] = {}
    for method in methods:
        chosen = experts[: METHODS[method][3]]
        ours, theirs = [], []
        for _ in range(repeats):
            if python:
                theirs.append(mergekit(folder, method, base, chosen, python, path))
            ours.append(evomerge(folder, method, base, chosen))
        found[method] = {"evomerge": median(ours), "load": os.getloadavg()[0]}
        if theirs:
            found[method]["mergekit"] = median(theirs)
            for key in ("wall_s", "cpu_s", "peak_mb"):
                found[method][f"{key}_ratio"] = round(
                    found[method]["mergekit"][key] / found[method]["evomerge"][key], 2
                )
        print(method, json.dumps(found[method]), flush=True)
    shutil.rmtree(base.parent)
    return found


def scaling(folder: Path, repeats: int, method: str = "ties") -> list[dict[str, Any]]:
    """By experts, by size, and with experts that share 60 % of their tensors with the base."""
    rows = {("160M", 0.0): (2, 4, 8, 16), ("160M", 0.6): (4, 16), ("40M", 0.0): (4,)}
    rows |= {("640M", 0.0): (4,)}
    found = []
    for (size, shared), counts in rows.items():
        base, experts = models(folder, size, max(counts), shared)
        for count in counts:
            runs = [evomerge(folder, method, base, experts[:count]) for _ in range(repeats)]
            row = {"size": size, "experts": count, "shared": shared, **median(runs)}
            found.append({**row, "load": os.getloadavg()[0]})
            print(json.dumps(found[-1]), flush=True)
        shutil.rmtree(base.parent)
    return found


def models(folder: Path, size: str, count: int, shared: float) -> tuple[Path, list[Path]]:
    """A base and its experts, in a folder of their own."""
    at = folder / f"{size}-{count}-{shared}"
    base = write_model(at / "base", LAYOUTS[size], None, 0, 0)
    experts = [
        write_model(at / f"expert{i:02}", LAYOUTS[size], base, i + 1, shared) for i in range(count)
    ]
    return base, experts


def median(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Runs all of it, or the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mergekit", default="", help="Python of an environment with mergekit")
    parser.add_argument("--mergekit-path", default="", help="PYTHONPATH for it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--parts", nargs="*", default=["methods", "scaling"])
    parser.add_argument("--folder", help="where the models are written [a temporary folder]")
    options = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, on = Path(name), machine()
        if "methods" in options.parts:
            rows: Any = against(
                folder, options.mergekit, options.mergekit_path, options.repeats, options.methods
            )
            rows = {**result.get("methods", {}).get("rows", {}), **rows}
            result["methods"] = {"machine": on, "repeats": options.repeats, "rows": rows}
        if "scaling" in options.parts:
            rows = scaling(folder, options.repeats)
            result["scaling"] = {"machine": on, "repeats": options.repeats, "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
