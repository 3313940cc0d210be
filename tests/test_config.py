from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.config import (
    Experiment,
    Optimise,
    SearchConfig,
    check_names,
    experiment_from,
    load_experiment,
)
from evomerge.content import known
from evomerge.errors import ConfigError

FILE: dict[str, Any] = {
    "base": "org/base",
    "experts": {"math": "org/math", "code": "org/code"},
    "space": {"method": "task_arithmetic", "genes": {"weight": {"per": ["expert"]}}},
    "objectives": ["vqa", "ocr"],
    "optimise": {"maximise": ["mean", "min"]},
    "search": {"algorithm": "cma"},
    "budget": {"candidates": 5},
}


@pytest.fixture
def write(tmp_path: Path):
    def write(**changes: Any) -> Path:
        data = {k: v for k, v in {**FILE, **changes}.items() if v is not None}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, write):
    """load(**changes): the experiment of the file with these keys changed."""

    def load(**changes: Any) -> Experiment:
        return load_experiment(write(**changes))

    return load


def test_defaults(load) -> None:
    experiment = load()
    assert experiment.name == "mine"
    assert experiment.search.seed == 0
    assert load(search=None).search == SearchConfig(algorithm="auto", seed=0)
    assert (experiment.pool.name, experiment.pool.workers) == ("inline", 1)
    assert experiment.backend.name == "transformers"
    assert experiment.objectives == ({"source": "vqa"}, {"source": "ocr"})


def test_an_experiment_survives_its_dump(load) -> None:
    experiment = load(
        optimise={
            "maximise": ["vqa"],
            "minimise": ["ocr"],
            "reference": {"ocr": 1 / 3},
            "scalarise": {"rule": "chebyshev", "weights": {"vqa": 2}},
        },
        budget={"hours": 0.1, "tokens": 10},
        directions={"math": "expert", "merged": {"method": "ties", "experts": ["code"]}},
    )
    assert experiment_from(experiment.model_dump(mode="json")) == experiment


def test_paths_count_from_the_file(tmp_path: Path, load) -> None:
    for name in ("base", "code", "task"):
        (tmp_path / name).mkdir()
    experiment = load(
        base="./base",
        experts={"math": "org/math", "code": "code"},
        objectives=["./task", "zoo/vqa", {"name": "inline", "data": "x.jsonl"}],
    )
    assert experiment.base == str(tmp_path / "base")
    assert experiment.experts == {"math": "org/math", "code": str(tmp_path / "code")}
    assert experiment.objectives == (
        {"source": str(tmp_path / "task")},
        {"source": "zoo/vqa"},
        {"inline": {"name": "inline", "data": "x.jsonl"}, "folder": str(tmp_path)},
    )


def test_a_space_by_file_and_by_name(tmp_path: Path, load) -> None:
    (tmp_path / "mine-space.yaml").write_text("method: ties\ngenes:\n  weight: {per: [expert]}\n")
    assert load(space="mine-space.yaml").space.method == "ties"
    shipped = sorted(known("search_spaces"))
    assert load(space=shipped[0]).space.name == shipped[0]
    with pytest.raises(
        ConfigError, match=r"search_spaces: nothing is called 'layerwise-tie'; known"
    ):
        load(space="layerwise-tie")


def test_an_experiment_in_a_folder_has_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-study"
    folder.mkdir()
    (folder / "experiment.yaml").write_text(yaml.safe_dump(FILE))
    assert load_experiment(folder).name == "my-study"
    assert load_experiment(folder / "experiment.yaml").name == "my-study"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bugdet": {"candidates": 5}},
            r"mine\.yaml:\d+: unknown key 'bugdet'; did you mean 'budg",
        ),
        (
            {"budget": {"candidate": 5}},
            r"unknown key 'budget\.candidate'; did you mean 'candidates'",
        ),
        ({"budget": {}}, r"budget: give at least one of candidates, items, tokens, hours"),
        ({"budget": {"candidates": 0}}, r"budget\.candidates: .*greater than or equal to 1"),
        ({"budget": {"hours": -1}}, r"budget\.hours: .*greater than 0"),
        ({"budget": None}, r"the key 'budget' is missing"),
        ({"experts": {}}, r"experts: .*at least 1 item"),
        ({"objectives": []}, r"objectives: .*at least 1 item"),
        (
            {"pool": {"name": "inline", "workers": 2}},
            r"inline pool has one worker; use pool: {name: r",
        ),
        ({"pool": {"name": "slurm"}}, r"pool\.name: Input should be 'inline' or 'ray'"),
        (
            {"backend": {"name": "vlm"}},
            r"backend: name: expected transformers, vllm, server or fake",
        ),
        ({"backend": {"name": "server"}}, r"key 'backend\.url' is missing"),
        ({"backend": {"name": "fake", "batch": 2}}, r"unknown key 'backend\.batch'.* known: name$"),
        ({"backend": {"batches": 2}}, r"'backend\.batches'; did you mean 'batch'\? "),
        ({"search": {"algorithm": "cma", "seed": 0.5}}, r"search\.seed: .*integer"),
        ({"optimise": {}}, r"optimise: name at least one objective in maximise or minimise"),
        ({"optimise": {"minimise": ["ppl"]}}, r"'ppl' is minimised.*reference: {ppl: 100}"),
        ({"optimise": {"maximise": ["a", "a"]}}, r"an objective is named twice: a, a"),
        (
            {"optimise": {"maximise": ["a"], "minimise": ["a"], "reference": {"a": 1}}},
            r"an objective is named twice",
        ),
        (
            {"optimise": {"maximise": ["recall"], "reference": {"recal": 1}}},
            r"reference names 'recal'; did you mean 'recall'\?",
        ),
        (
            {
                "optimise": {
                    "maximise": ["recall"],
                    "scalarise": {"rule": "chebyshev", "weights": {"recal": 1}},
                }
            },
            r"weights names 'recal'; did you mean 'recall'\?",
        ),
        (
            {"optimise": {"maximise": ["a"], "scalarise": {"rule": "sum"}}},
            r"optimise\.scalarise\.rule: Input should be 'weighted-sum' or 'chebyshev'",
        ),
        (
            {"directions": {"mat": "expert"}},
            r"direction 'mat': no expert has that name; did you mean 'math'\?",
        ),
        (
            {"directions": {"math": {"method": "ties"}}},
            r"direction 'math' has the name of an expert; .* write math: expert to search over the",
        ),
        (
            {"directions": {"merged": {"method": "ties", "experts": ["mat"]}}},
            r"direction 'merged' names expert 'mat'; did you mean 'math'\?",
        ),
        (
            {"space": {"method": "task_arithmetic", "genes": {"wieght": {}}}},
            r"mine\.yaml:\d+: space\.genes\.wieght: .*did you mean 'weight'\?",
        ),
    ],
)
def test_mistakes(load, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_objective(load) -> None:
    experiment = load(optimise={"maximise": ["vqaa", "min"]})
    with pytest.raises(
        ConfigError, match=r"optimise names 'vqaa'; did you mean 'vqa'\? known: vqa, "
    ):
        check_names(experiment, ("vqa", "ocr"))
    check_names(load(optimise={"maximise": ["vqa", "mean", "min"]}), ("vqa", "ocr"))


def test_signs_and_reference_follow_the_names() -> None:
    optimise = Optimise(
        maximise=("acc", "min"), minimise=("ppl",), reference={"ppl": 50.0, "min": -1.0}
    )
    assert optimise.names == ("acc", "min", "ppl")
    assert optimise.signs == (1.0, 1.0, -1.0)
    assert optimise.reference_point == (0.0, -1.0, 50.0)


def test_older_ledgers_know_nothing_of_racing(load) -> None:
    search = load().model_dump(mode="json")["search"]
    without = load(search={**search, "racing": False})

    assert "racing" not in load().identity()["search"]
    assert json.dumps(without.identity()) == json.dumps(load().identity())
    raced = load(search={**search, "racing": {}}).identity()["search"]
    assert raced["racing"] == {"level": 0.05}


def test_the_identity_ignores_budget_and_pool(load) -> None:
    usual = json.dumps(load().identity())
    assert json.dumps(load(budget={"hours": 3}).identity()) == usual
    pool = {"name": "ray", "workers": 4, "gpus": 1}
    assert json.dumps(load(pool=pool).identity()) == usual


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "org/other"},
        {"experts": {"math": "org/math", "code": "org/other"}},
        {"experts": {"code": "org/code", "math": "org/math"}},  # the genes are in another order
        {"space": {"method": "task_arithmetic", "genes": {"weight": {}}}},
        {"objectives": ["ocr", "vqa"]},
        {"optimise": {"maximise": ["mean"]}},
        {"search": {"algorithm": "cma", "seed": 1}},
        {"search": {"algorithm": "cma", "options": {"population": 5}}},
        {"search": {"algorithm": "cma", "racing": {"level": 0.1}}},
        {"directions": {"math": "expert"}},
        {"backend": {"dtype": "bfloat16"}},
    ],
)
def test_the_identity_heeds_everything_else(load, changes: dict[str, Any]) -> None:
    # as text: the order of experts counts
    assert json.dumps(load(**changes).identity()) != json.dumps(load().identity())


@pytest.mark.parametrize("name", sorted(known("experiments")))
def test_shipped_experiments_are_valid(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == Path(name).name
    assert experiment.optimise.names
