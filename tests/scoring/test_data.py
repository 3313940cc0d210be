from __future__ import annotations

import base64
import hashlib
import json

import pytest

from evomerge.errors import DataError
from evomerge.scoring.data import content_key, image_bytes, load_items

PNG = b"\x89PNG\r\n\x1a\n rest"
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


def write(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def chat(text="2 + 2?", **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def test_both_forms_give_the_same_item(tmp_path):
    file = write(tmp_path / "d.jsonl", chat(answer="4"), {"prompt": "2 + 2?", "answer": 4})
    first, second = load_items(file)
    assert first.messages == second.messages == ({"role": "user", "content": "2 + 2?"},)
    assert first.answer == second.answer == "4"
    assert (first.id, second.id) == ("1", "2")


def test_default_ids_are_line_numbers_and_blank_lines_count(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(chat()) + "\n\n" + json.dumps(chat("3?", source="book")) + "\n")
    items = load_items(file)
    assert [item.id for item in items] == ["1", "3"]
    assert items[1].extra == {"source": "book"}


def test_a_last_assistant_message_is_the_reference(tmp_path):
    turns = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
    ]
    (item,) = load_items(write(tmp_path / "d.jsonl", {"messages": turns}))
    assert item.answer == "hello"
    assert [m["role"] for m in item.messages] == ["system", "user"]


def test_images_are_normalised(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    parts = [
        {"type": "image", "image": URI},
        {"type": "image", "image": "a.png"},
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image", "image": str(tmp_path / "a.png")},
        {"type": "text", "text": "what?"},
    ]
    (item,) = load_items(write(tmp_path / "d.jsonl", chat(parts)))
    images = [p["image"] for p in item.messages[0]["content"] if p["type"] == "image"]
    assert [image_bytes(image) for image in images] == [PNG] * 4


def test_content_key_ignores_id_and_where_an_image_is_stored(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    inside = chat([{"type": "image", "image": URI}], id="x", answer="1")
    outside = chat([{"type": "image", "image": "a.png"}], id="y", answer="2")
    other = chat([{"type": "text", "text": "a.png"}])
    keys = [content_key(i) for i in load_items(write(tmp_path / "d.jsonl", inside, outside, other))]
    assert keys[0] == keys[1] != keys[2]


def test_choices_by_text_and_by_index(tmp_path):
    file = write(
        tmp_path / "d.jsonl",
        chat(choices=["3", "4"], answer="4"),
        chat(choices=["3", "4"], answer=0),
    )
    assert [item.answer for item in load_items(file)] == ["4", "3"]


def test_sha256_is_checked(tmp_path):
    file = write(tmp_path / "d.jsonl", chat())
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(load_items(file, actual)) == 1
    with pytest.raises(DataError, match=f"sha256 is {actual}, expected {'0' * 64}; restore"):
        load_items(file, "0" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no items"),
        ("\n\n", "no items"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("[1]", "expected an object, got list"),
        ('{"answer": "4"}', "either 'messages' or 'prompt'"),
        ('{"prompt": "a", "messages": []}', "either 'messages' or 'prompt'"),
        ('{"prompt": 3}', "'prompt' must be text"),
        ('{"messages": []}', "non-empty list"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "role among"),
        ('{"messages": ["a"]}', "role among"),
        ('{"messages": [{"role": "user", "content": 3}]}', "text or a list"),
        ('{"messages": [{"role": "user", "content": [{"type": "sound"}]}]}', "text or an image"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "nothing would be asked"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "'x' occurs twice"),
        ('{"prompt": "a", "answer": [1]}', "'answer' must be"),
        ('{"prompt": "a", "choices": ["b"]}', "two or more different"),
        ('{"prompt": "a", "choices": ["b", "b"]}', "two or more different"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": "d"}', "not among the choices"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "no index of 2"),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "d.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load_items(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../secret.png", "leaves the folder"),
        ("none.png", "does not exist"),
        ("https://example.org/a.png", "remote"),
        ("data:image/gif;base64,aaaa", "expected one of data:image/png"),
        ("data:image/png;base64,****", "not valid base64"),
        ("data:image/jpeg;base64," + base64.b64encode(PNG).decode(), "not what"),
    ],
)
def test_bad_images(tmp_path, image, message):
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "sub").mkdir()
    file = write(tmp_path / "sub" / "d.jsonl", chat([{"type": "image", "image": image}]))
    with pytest.raises(DataError, match=message):
        load_items(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        load_items(tmp_path / "none.jsonl")
