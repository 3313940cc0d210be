"""Texts that are continued as they stand: tokens, windows, stop strings; and what is kept."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest

from evomerge.backends import prompts
from evomerge.backends.cache import Cache
from evomerge.backends.prompts import Prompter
from evomerge.backends.texts import Texts, context_length
from evomerge.errors import DataError
from evomerge.scoring.requests import Generate, LogLikelihood, Rolling
from tests.backends.conftest import image_requests, text_messages, text_requests
from tests.backends.running import fresh, opened, same
from tests.models import SPECIALS, letters, with_first_token

FIRST, END = SPECIALS.index("<|endoftext|>"), SPECIALS.index("<|im_end|>")


@pytest.fixture(scope="module")
def llama_with_first(llama, tmp_path_factory):
    return with_first_token(llama, tmp_path_factory.mktemp("first") / "llama")


def texts_of(path, length=None):
    from transformers import AutoConfig

    return Texts(path, AutoConfig.from_pretrained(path), length)


def test_a_text_is_tokenised_as_the_tokeniser_does(llama, llama_with_first):
    plain, first = texts_of(llama), texts_of(llama_with_first)
    ids = plain.tokenizer("the cat")["input_ids"]
    assert plain.ids("the cat") == ids
    assert first.ids("the cat") == [FIRST, *ids]
    assert first.ids("<|endoftext|>the cat") == [FIRST, *ids]
    assert plain.ids("") == [END]  # it has no other token to begin with
    assert first.ids("") == [FIRST]


def test_continuations_of_texts(llama, llama_with_first):
    for texts in (texts_of(llama), texts_of(llama_with_first)):
        he, into = texts.tokenizer(["he", "in"], add_special_tokens=False)["input_ids"]
        assert texts.continuation(LogLikelihood("a", "in")) == into
        # "t" and "he" are one token together, which leaves none beyond the prompt's one
        assert texts.continuation(LogLikelihood("t", "he")) == he
        # "t", "h" and "at" are "th", "a", "t" together: two beyond the prompt's one
        assert texts.continuation(LogLikelihood("t", "hat")) == texts.ids("that")[-2:]
        assert texts.continuation(LogLikelihood("", "in")) == into
        with pytest.raises(DataError, match="has no tokens"):
            texts.continuation(LogLikelihood("a", ""))


def test_an_answer_ends_where_generation_stops(llama, tmp_path):
    asked = LogLikelihood(text_messages("count"), "one two")
    ended = LogLikelihood(text_messages("count"), "one two", ended=True)
    assert ended.key != asked.key
    texts = texts_of(llama)
    assert texts.continuation(ended) == [*texts.continuation(asked), END]
    copy = shutil.copytree(llama, tmp_path / "other")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert texts_of(copy).continuation(ended)[-1] == 5  # the tokeniser's own does not stop it
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, END]}))
    assert texts_of(copy).continuation(ended)[-1] == END


def test_an_unfinished_answer_is_continued(llama):
    begun = (*text_messages("count"), {"role": "assistant", "content": "one two"})
    assert texts_of(llama).render(begun).endswith("<|im_start|>assistant\none two")


def test_a_long_text_loses_its_beginning(llama):
    texts = texts_of(llama, length=8)
    ids = texts.ids("abcdefghijklmnop")
    assert texts.rows(Generate("abcdefghijklmnop", 3)) == [(ids[-5:], 0)]
    ((row, scored),) = texts.rows(LogLikelihood("abcdefghijklmno", "p"))
    assert (row, scored) == (ids[-9:], 1)
    with pytest.raises(DataError, match="8 generated tokens do not fit into the model's context"):
        texts.rows(Generate("a", 8))
    with pytest.raises(DataError, match="9 scored tokens do not fit"):
        texts.rows(LogLikelihood("x", "cdcdcdcdc"))
    conversation = text_messages("abcdefghijklmnop")
    ((row, _),) = texts.rows(Generate(conversation, 3))
    assert row == texts.ids(conversation)


def test_windows_are_those_of_the_harness():
    utils = pytest.importorskip("lm_eval.utils")
    texts = Texts.__new__(Texts)
    for tokens, texts.length in itertools.product(range(1, 30), range(1, 11)):
        ids = list(range(1, tokens + 1))
        theirs = utils.get_rolling_token_windows(ids, 0, texts.length, 1)
        row, windows = [0, *ids], texts.windows(tokens + 1)
        ours = [(row[start : end - n], row[end - n : end]) for start, end, n in windows]
        assert ours == [utils.make_disjoint_window(window) for window in theirs]


def test_a_whole_text_in_windows(llama, tmp_path):
    path = tmp_path / "short"
    shutil.copytree(llama, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    backend, texts = opened(path), texts_of(path)
    assert texts.length == 8
    (whole,) = backend.run([Rolling("the thin inn of abba")])
    ids = [END, *texts.tokenizer("the thin inn of abba")["input_ids"]]
    parts = [(0, 9, 8), (len(ids) - 9, len(ids), len(ids) - 9)]
    assert whole.tokens == len(ids) - 1 > 8
    assert whole.logprob == pytest.approx(sum(by_hand(llama, ids[a:b], n) for a, b, n in parts))
    assert not whole.greedy


def by_hand(path, ids, scored):
    import torch

    with torch.no_grad():
        logits = fresh(path)(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[-scored:][i, t]) for i, t in enumerate(ids[-scored:]))


def test_lengths_that_checkpoints_declare(llama):
    class Config:
        n_positions = 3

    class Composite:
        text_config, max_position_embeddings = Config(), 9

    class Tokenizer:
        model_max_length = 7

    assert context_length(Composite(), Tokenizer()) == 3
    assert context_length(object(), Tokenizer()) == 7
    Tokenizer.model_max_length = int(1e30)
    assert context_length(object(), Tokenizer()) == 2048
    assert texts_of(llama).length == 512


def test_an_answer_ends_before_a_stop_string(llama):
    backend = opened(llama)
    backend.load(letters(llama))
    texts = [f"the {i}" for i in range(12)]
    whole = backend.run([Generate(t, 16) for t in texts])
    stops = tuple(sorted({whole[0].text[5:7], whole[1].text[9:12], "?"}))
    stopped = backend.run([Generate(t, 16, stops) for t in texts])
    cut = [min((w.text.find(s) for s in stops if s in w.text), default=None) for w in whole]
    assert [s.text for s in stopped] == [w.text[:at] for w, at in zip(whole, cut, strict=True)]
    assert 2 < sum(at is not None for at in cut) < 12
    for a, b, at in zip(stopped, whole, cut, strict=True):
        assert a.tokens < b.tokens if at is not None else a == b
    same(stopped, [backend.run([Generate(t, 16, stops)])[0] for t in texts])


def test_the_stop_string_may_be_a_special_token(llama):
    backend, weights = opened(llama), letters(llama)
    backend.load(weights)
    prompts = [Generate(f"the {i}", 6) for i in range(12)]
    answers = [r.text for r in backend.run(prompts)]
    prompt, answer = next((p.messages, a) for p, a in zip(prompts, answers, strict=True)
                          if a[2] not in a[:2])  # fmt: skip
    third = backend.live()[2].texts.tokenizer(answer[2])["input_ids"][0]
    start, head = SPECIALS.index("<|im_start|>"), weights["lm_head.weight"]
    head[[start, third]] = head[[third, start]]  # what it said third is now a special token
    backend.load(weights)
    (further,) = backend.run([Generate(prompt, 6)])
    assert (further.text[:2], further.tokens) == (answer[:2], 6)
    (stopped,) = backend.run([Generate(prompt, 6, ("<|im_start|>",))])
    assert (stopped.text, stopped.tokens) == (answer[:2], 3)


def test_whether_a_continuation_is_the_likeliest(llama):
    backend = opened(llama)
    backend.load(letters(llama))
    asked = [f"the {i}" for i in range(12)]
    said = [r.text for r in backend.run([Generate(t, 1) for t in asked])]
    pairs = list(zip(asked, said, strict=True))
    assert all(r.greedy for r in backend.run([LogLikelihood(t, s) for t, s in pairs]))
    other = [LogLikelihood(t, s + "Q") for t, s in pairs]
    other += [LogLikelihood(t, "z" if s != "z" else "y") for t, s in pairs]
    assert not any(r.greedy for r in backend.run(other))


def test_a_cache_keeps_what_this_round_has_used():
    made: list[str] = []

    def value(key):
        made.append(key)
        return key

    cache = Cache(3, lambda _: 1)
    for _ in range(3):
        cache.renew()
        for key in "abcde":
            assert cache.get(key, lambda key=key: value(key)) == key
    assert "".join(made) == "abcde" + "de" * 2  # a, b and c stay, d and e find no room
    assert cache.bytes == 3
    made.clear()
    cache.renew()
    for key in "wxyz":
        cache.get(key, lambda key=key: value(key))
    cache.renew()
    for key in "wxyz":
        cache.get(key, lambda key=key: value(key))
    assert "".join(made) == "wxyz" + "z"  # what no round asks any more has gone
    Cache(3, lambda _: 4).get("a", lambda: "too large")


def test_images_are_processed_once_a_worker(qwen, monkeypatch):
    opens: list[str] = []
    real = prompts.open_image
    monkeypatch.setattr(prompts, "open_image", lambda s: opens.append(s) or real(s))
    backend = opened(qwen, batch=4)
    requests = [*image_requests(), *text_requests()]
    first = backend.run(requests)
    images = len(opens)
    assert images == len({r.prompt_key for r in image_requests()}) + 1  # one prompt has two
    assert backend.run(requests) == first
    assert len(opens) == images

    model, weights, prompter = backend.live()
    small = Prompter(qwen, model, cache=20_000)
    backend._opened = (model, weights, small)
    assert backend.run(requests) == first
    assert backend.run(requests) == first
    assert 0 < small._prompts.bytes <= 20_000 < prompter._prompts.bytes
