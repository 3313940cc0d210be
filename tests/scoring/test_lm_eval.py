"""Tasks of lm-evaluation-harness: the same results as its own models, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
import sys

import pytest
import yaml
from safetensors.torch import load_file, save_file

from evomerge.backends.transformers import TransformersBackend
from evomerge.errors import ConfigError, DataError, MissingDependency
from evomerge.scoring import evaluate
from evomerge.scoring.measures import WeightStats
from evomerge.scoring.objectives import load_objective
from evomerge.scoring.requests import Generate, Generated, LogLikelihood, Rolling
from tests.models import letters, tiny_llama, with_first_token
from tests.scoring.harness import documents, harness_results, write_rows, write_tasks

tasks = pytest.importorskip("lm_eval.tasks")

LENGTH = 48  # tokens that the third model can read: prompts are cut, pages come in windows


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that says letters; with a token that begins each text; and with a short context."""
    folder = tmp_path_factory.mktemp("models")
    plain = tiny_llama(folder / "plain")
    weights = {**load_file(plain / "model.safetensors"), **letters(plain)}
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    first = with_first_token(plain, folder / "first")
    shutil.copytree(first, folder / "short")
    config = json.loads((first / "config.json").read_text())
    config["max_position_embeddings"] = LENGTH
    (folder / "short" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["plain", "first", "short"])
def world(models, request, tmp_path_factory):
    """A model, and a folder of tasks of which it has some right."""
    model = models / request.param
    folder = write_tasks(tmp_path_factory.mktemp("tasks") / "tasks")
    sums, words = documents()["sums"], documents()["last_word"]
    asked = [f"Question: {row['a']} + {row['b']} =\nAnswer:" for row in sums]
    for row, text in list(zip(sums, answers(model, asked, ("db", "x", "the")), strict=True))[::2]:
        row["answer"] = text
    for row, text in list(zip(words, answers(model, [r["text"] for r in words]), strict=True))[::2]:
        row["word"] = text[0]
    write_rows(folder / "sums.jsonl", sums)
    write_rows(folder / "last_word.jsonl", words)
    return model, folder


def answers(model, texts, stop=()):
    backend = TransformersBackend(model, device="cpu")
    backend.open()
    return [r.text for r in backend.run([Generate(text, 24, stop) for text in texts])]


def task(folder, task, /, **settings):
    return load_objective({"kind": "lm-eval", "task": f"{task}.yaml", **settings}, folder)


def scored(model, objective, split="search"):
    """Responses by item, scores and value of the objective on a model."""
    backend = TransformersBackend(model, device="cpu", batch=5)
    backend.open()
    plan = evaluate.plan([objective], split)
    responses = backend.run(plan.requests)
    scores = evaluate.score(plan, responses, WeightStats(1, 0))[objective.name]
    by_item = {use.item.id: [responses[i] for i in use.positions] for use in plan.uses}
    return by_item, scores, objective.aggregate(list(scores.values()))


@pytest.mark.parametrize(
    ("name", "metric", "length"),
    [
        ("places", "acc", lambda choice: 1),
        ("places", "acc_norm", len),
        ("which", "acc", lambda choice: 1),
    ],
)
def test_multiple_choice_has_the_margin_of_the_right_one_as_its_signal(world, name, metric, length):
    model, folder = world
    objective = task(folder, name, metric=metric, held_out=0)
    responses, scores, _ = scored(model, objective)
    assert objective.has_signal
    for item in objective.items("search"):
        row = documents()[name][int(item.id.split("/")[1])]
        choices = row["choices"] if name == "places" else row["beginnings"]
        asked = objective.signal_requests(item)
        assert asked == objective.requests(item)[: len(choices)]
        answered = responses[item.id][: len(choices)]
        margins = [r.logprob / length(c) for r, c in zip(answered, choices, strict=True)]
        right = margins.pop(row["right"])
        signal = objective.signal(item, answered)
        assert signal == right - max(margins)
        assert scores[item.id].value == float(signal > 0)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("places", "acc_mutual_info"),
        ("places", "brier_score"),
        ("last_word", "acc"),
        ("sums", None),
    ],
)
def test_other_tasks_have_no_signal(world, name, metric):
    assert not task(world[1], name, metric=metric, held_out=0).has_signal


METRICS = {
    "sums": ["exact_match"],
    "places": ["acc", "acc_norm", "acc_mutual_info", "brier_score"],
    "which": ["acc"],
    "last_word": ["perplexity", "acc"],
    "pages": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
}


@pytest.fixture(scope="module")
def reference(world):
    """What the harness makes of all tasks."""
    model, folder = world
    return harness_results(model, folder, *METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_results_are_those_of_the_harness(world, reference, name):
    (model, folder), results = world, reference
    samples = {f"test/{sample['doc_id']}": sample for sample in results["samples"][name]}
    for metric in METRICS[name]:
        objective = task(folder, name, metric=metric, held_out=0)
        responses, scores, value = scored(model, objective)
        assert list(scores) == list(samples)
        for item, sample in samples.items():
            theirs = [given for ((given,),) in [[r] for r in sample["resps"]]]
            if name == "sums":
                assert [r.text for r in responses[item]] == theirs
            elif name == "pages":
                assert [r.logprob for r in responses[item]] == pytest.approx(theirs, rel=1e-5)
            else:
                for ours, (logprob, greedy) in zip(responses[item], theirs, strict=True):
                    assert ours.logprob == pytest.approx(logprob, rel=1e-5, abs=1e-5)
                    assert ours.greedy == greedy
            if objective.measure.aggregation == "mean":
                assert scores[item].value == sample[metric]
        assert value.value == pytest.approx(results["results"][name][f"{metric},none"], rel=1e-5)
        assert value.se is not None
        if objective.measure.aggregation == "mean":
            assert 0 < value.value < 1  # else the comparison says nothing
            assert value.se > 0


def test_examples_are_those_of_the_harness(world):
    model, folder = world
    results = harness_results(model, folder, "sums", num_fewshot=2, limit=6)
    objective = task(folder, "sums", fewshot=2, held_out=0, limit=6)
    responses, _, _ = scored(model, objective)
    for item, sample in zip(objective.items("search"), results["samples"]["sums"], strict=True):
        (request,) = objective.requests(item)
        ((context, _),) = sample["arguments"]
        assert request.messages == context
        assert context.count("Question:") == 3
        assert [[responses[item.id][0].text]] == sample["resps"]
    # the question is the same whatever the examples: so is the split
    assert ids(task(folder, "sums", fewshot=2)) == ids(task(folder, "sums"))


def ids(objective):
    return {s: [i.id for i in objective.items(s)] for s in ("search", "held_out")}


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path / "tasks")


def test_chat(models, folder):
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "num_fewshot": 1}
    results = harness_results(models / "plain", folder, "sums", limit=5, **options)
    objective = task(folder, "sums", chat=True, fewshot=1, held_out=0, limit=5)
    responses, _, _ = scored(models / "plain", objective)
    for item, sample in zip(objective.items("search"), results["samples"]["sums"], strict=True):
        (request,) = objective.requests(item)
        assert [m["role"] for m in request.messages] == ["user", "assistant", "user"]
        assert [[responses[item.id][0].text]] == sample["resps"]


def test_pages_are_longer_than_the_short_model_reads(folder):
    assert max(len(item.answer) for item in task(folder, "pages").items("search")) > LENGTH + 20


def test_what_an_objective_says_of_itself(folder):
    objective = task(folder, "places", metric="acc_norm")
    assert (objective.name, objective.direction) == ("places", "maximise")
    item = objective.items("search")[0]
    number = int(item.id.removeprefix("test/"))
    choices = documents()["places"][number]["choices"]
    where = documents()["places"][number]["where"]
    assert objective.requests(item) == [
        *(LogLikelihood(where, f" {choice}") for choice in choices),
        *(LogLikelihood("", choice) for choice in choices),
    ]
    right = choices[documents()["places"][number]["right"]]
    assert (item.messages, item.answer) == (where, f" {right}")
    assert task(folder, "last_word").direction == "minimise"
    assert task(folder, "last_word", direction="maximise").direction == "maximise"
    assert task(folder, "last_word", name="cloze").name == "cloze"
    page = task(folder, "pages").items("search")[0]
    assert task(folder, "pages").requests(page) == [Rolling(page.answer)]
    total = task(folder, "sums").items("search")[0]
    (request,) = task(folder, "sums").requests(total)
    assert (request.max_new_tokens, request.stop) == (24, ("db", "x", "the"))
    assert total.answer == f" {2 * int(total.id.removeprefix('test/')) + 1}"
    which, row = task(folder, "which").items("search")[0], documents()["which"]
    row = row[int(which.id.removeprefix("test/"))]
    beginning = row["beginnings"][row["right"]]
    assert (which.messages, which.answer) == (beginning, f" {row['end']}")
    (request,) = task(folder, "sums", max_new_tokens=3).requests(total)
    assert request.max_new_tokens == 3


def test_one_split_is_divided_by_its_questions(folder):
    objective = task(folder, "sums")
    split = ids(objective)
    assert sorted(split["search"] + split["held_out"]) == sorted(f"test/{i}" for i in range(24))
    assert min(len(split["search"]), len(split["held_out"])) > 5
    few = ids(task(folder, "sums", held_out=0.1))
    assert set(few["held_out"]) < set(split["held_out"])
    assert ids(task(folder, "sums", held_out=0)) == {
        "search": [f"test/{i}" for i in range(24)],
        "held_out": [],
    }
    limited = ids(task(folder, "sums", limit=4))
    assert limited == {name: of[:4] for name, of in split.items()}
    # neither order nor answer matters, and equal questions stay together
    rows = [{**row, "answer": "?"} for row in documents()["sums"][::-1]] * 2
    write_rows(folder / "sums.jsonl", rows)
    turned = ids(task(folder, "sums"))["search"]
    numbers = {23 - int(name.removeprefix("test/")) % 24 for name in turned}
    assert {f"test/{n}" for n in numbers} == set(split["search"])
    assert len(turned) == 2 * len(split["search"])


def two_splits(tmp_path, **changes):
    files = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "sums.jsonl"}
    settings = {"dataset_kwargs": {"data_files": files}, "validation_split": "validation"}
    folder = write_tasks(tmp_path / "two", sums={**settings, **changes})
    rows = documents()["sums"]
    other = [{**row, "a": row["a"] + 100} for row in rows]
    write_rows(folder / "dev.jsonl", [*other, rows[5]])  # one question is in both
    return folder


def test_a_validation_split_is_searched_on_and_the_test_split_held_out(tmp_path):
    split = ids(task(two_splits(tmp_path), "sums"))
    assert split["search"] == [f"validation/{i}" for i in range(25)]
    assert split["held_out"] == [f"test/{i}" for i in range(24) if i != 5]
    declared = ids(task(two_splits(tmp_path), "sums", held_out=0.5))
    assert {i.partition("/")[0] for of in declared.values() for i in of} == {"test"}
    # its documents would be shown as examples, with their answers
    examples = ids(task(two_splits(tmp_path, fewshot_split="validation"), "sums", fewshot=1))
    assert {i.partition("/")[0] for of in examples.values() for i in of} == {"test"}


def test_the_fingerprint_is_of_all_that_is_asked(folder, tmp_path):
    first = task(folder, "sums").describe()
    assert first["sha256"].keys() == {"search", "held_out"}
    json.dumps(first)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    assert task(elsewhere, "sums").describe() == first
    assert task(folder, "sums", fewshot=1).describe()["sha256"] != first["sha256"]
    rows = documents()["sums"]
    write_rows(elsewhere / "sums.jsonl", [*rows[:-1], {**rows[-1], "answer": "?"}])
    assert task(elsewhere, "sums").describe()["sha256"] != first["sha256"]
    metrics = [{"metric": "exact_match", "ignore_case": True}]
    other = task(write_tasks(tmp_path / "other", sums={"metric_list": metrics}), "sums").describe()
    assert other["sha256"] == first["sha256"]
    assert other["task_sha256"] != first["task_sha256"]
    assert [first["exponential"], task(folder, "pages").describe()["exponential"]] == [False, True]


def test_filters(tmp_path):
    take = {"function": "take_first"}
    filters = [
        {"name": "strict", "filter": [take]},
        {"name": "digits", "filter": [{"function": "regex", "regex_pattern": "(\\d+)"}, take]},
    ]
    folder = write_tasks(tmp_path / "filters", sums={"filter_list": filters, "repeats": 2})
    scores = {}
    for name in (None, "strict", "digits"):
        objective = task(folder, "sums", filter=name)
        item = objective.items("search")[0]
        text = f"it is{item.answer} db"
        scores[name] = objective.score(item, [Generated(text, 3)]).value
    assert scores == {None: 0.0, "strict": 0.0, "digits": 1.0}
    with pytest.raises(ConfigError, match="no filter 'digit'; did you mean 'digits'"):
        task(folder, "sums", filter="digit")


def test_functions_beside_the_file(tmp_path):
    folder = write_tasks(tmp_path / "own")
    (folder / "mine.py").write_text(
        "def results(doc, results):\n    return {'close': abs(len(results[0]) - doc['b'])}\n"
    )
    text = (folder / "sums.yaml").read_text().replace("exact_match", "close")
    text = text.replace("true", "false") + "process_results: !function mine.results\n"
    (folder / "sums.yaml").write_text(text)
    objective = task(folder, "sums")
    assert (objective.measure.metric, objective.direction) == ("close", "minimise")
    item = objective.items("search")[0]
    number = int(item.id.removeprefix("test/"))
    assert objective.score(item, [Generated("abc", 3)]).value == abs(number + 1 - 3)
    assert "abs(len" not in json.dumps(objective.describe())


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """In place of the harness's own tasks, which take long to read."""
    folder = write_tasks(tmp_path / "shipped" / "sums", sums={"tag": "arithmetic"})
    (folder / "other.yaml").write_text(
        (folder / "sums.yaml").read_text().replace("task: sums", "task: more_sums")
    )
    group = {"group": "everything", "task": ["sums", "places", {"task": "pages"}]}
    (folder / "all.yaml").write_text(yaml.safe_dump(group))
    for module in (tasks, tasks.manager):
        monkeypatch.setattr(module, "__file__", str(folder.parent / "module.py"))
    return folder


def by_name(name, folder, **settings):
    return load_objective({"kind": "lm-eval", "task": name, **settings}, folder)


def test_a_task_by_its_name(folder, shipped, tmp_path):
    expected = ids(task(folder, "sums"))
    assert ids(by_name("sums", tmp_path)) == expected
    assert by_name("more_sums", tmp_path).name == "more_sums"
    rows = documents()["sums"][:9]
    write_rows(folder / "sums.jsonl", rows)  # one's own comes before the harness's
    assert sum(map(len, ids(by_name("sums", tmp_path, include="tasks")).values())) == 9
    for name, members in (("everything", "pages, places, sums"), ("arithmetic", "more_sums, sums")):
        with pytest.raises(ConfigError, match=rf"{name} is a group \({members}\); write one objec"):
            by_name(name, tmp_path)
    with pytest.raises(ConfigError, match=r"no task 'more_sum'; did you mean more_sums\?"):
        by_name("more_sum", tmp_path)


def test_a_task_whose_data_is_out_of_reach(folder):
    with pytest.raises(DataError, match=r"arc_easy: cannot be opened .*must be in the Hugging"):
        by_name("arc_easy", folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "acc"}, "has no metric 'acc'; known: exact_match"),
        ({"metrics": "acc"}, "unknown key 'metrics'; did you mean 'metric'"),
        ({"held_out": 1.0}, "held_out"),
        ({"task": "none.yaml"}, "none.yaml: no such file"),
        ({"task": "sums", "include": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_bad_settings(folder, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_objective({"kind": "lm-eval", "task": "sums.yaml", **settings}, folder)
    assert "\n" not in str(error.value)


HUB = [{"metric": "rouge", "aggregation": "mean", "higher_is_better": True, "hf_evaluate": True}]
F1 = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation_kwargs": {"until": ["."], "do_sample": True}}, "samples its answers"),
        ({"generation_kwargs": {"until": ["."], "temperature": 0.7}}, "samples its answers"),
        ({"generation_kwargs": {"until": ["."], "num_beams": 4}}, "num_beams are not supported"),
        ({"unsafe_code": True}, "runs code that the model writes"),
        ({"doc_to_image": "a"}, "shows images"),
        ({"metric_list": HUB}, "metric 'rouge' is code on the Hugging Face hub"),
        ({"metric_list": [{"metric": "unheard_of"}]}, "metric 'unheard_of' is code on the"),
        ({"metric_list": F1}, r"metric f1 \(aggregation f1\) is a number of all documents at once"),
        ({"task": ["sums", "places"], "group": "both"}, r"is a group \(places, sums\)"),
        ({"num_fewshot": 0}, "is defined without examples"),
    ],
)
def test_tasks_that_are_refused(tmp_path, changes, message):
    folder = write_tasks(tmp_path / "tasks", sums=changes)
    with pytest.raises(ConfigError, match=message) as error:
        task(folder, "sums", fewshot=1)
    assert "\n" not in str(error.value)


def test_data_that_cannot_be_read(folder):
    (folder / "sums.jsonl").unlink()
    with pytest.raises(DataError, match=r"sums\.yaml: cannot be opened"):
        task(folder, "sums")


def test_no_documents_to_search_on(folder):
    held = task(folder, "sums").items("held_out")[0]
    write_rows(folder / "sums.jsonl", [documents()["sums"][int(held.id.removeprefix("test/"))]])
    with pytest.raises(DataError, match="no document to search on; lower the share held_out"):
        task(folder, "sums")


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.metrics", None)
    with pytest.raises(MissingDependency, match=r"pip install 'evomerge\[lm-eval\]'"):
        task(folder, "sums")


def test_no_metric_is_fetched_to_be_run(folder, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: asked.append(host) or [])
    task(folder, "sums")
    with pytest.raises(FileNotFoundError):
        evaluate.load("rouge")
    assert asked == []


def test_whole_texts_have_no_answers_to_learn(folder):
    from evomerge.learning.session import _question

    pages = task(folder, "pages")
    with pytest.raises(ConfigError, match="objective pages scores whole texts"):
        _question(pages, pages.items("search")[0])
