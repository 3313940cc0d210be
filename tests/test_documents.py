from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, model_validator

from evomerge.documents import Document, did_you_mean, located, read_yaml, validate
from evomerge.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int
    colour: str = "red"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    inner: Inner
    many: list[Inner] = []
    by_name: dict[str, Inner] = {}
    either: str | Inner = "x"

    @model_validator(mode="after")
    def _check(self) -> Outer:
        if self.inner.width == 13:
            raise located(("inner", "width"), ConfigError("13 is {unlucky}"))
        return self


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "file.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def mistake(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, read_yaml(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_valid_file(write) -> None:
    path = write("name: größe\ninner: {width: 3}\neither: {width: 4}\n")
    assert validate(Outer, read_yaml(path)) == Outer(
        name="größe", inner=Inner(width=3), either=Inner(width=4)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ninner: {width: 1}\ninnr: 3\n", "3: unknown key 'innr'; did you mean 'inner'?"),
        (
            "name: a\ninner:\n  width: 1\n  color: blue\n",
            "4: unknown key 'inner.color'; did you mean 'colour'? known: width, colour",
        ),
        (
            "name: a\ninner: {width: 1}\nmany:\n  - width: 1\n  - width: 2\n    with: 3\n",
            "6: unknown key 'many.1.with'; did you mean 'width'?",
        ),
        (
            "name: a\ninner: {width: 1}\nby_name:\n  b:\n    width: 1\n    zzz: 3\n",
            "6: unknown key 'by_name.b.zzz'; known: width, colour",
        ),
        (
            "name: a\ninner: {width: 1}\neither:\n  width: 1\n  colr: 3\n",
            "5: unknown key 'either.colr'; did you mean 'colour'?",
        ),
        ("name: a\ninner:\n  colour: blue\n", "2: the key 'inner.width' is missing"),
        ("name: a\n", " the key 'inner' is missing"),
        ("name: a\ninner:\n  width: wide\n", "3: inner.width: Input should be a valid integer"),
        ("name: a\ninner: 7\n", "2: inner: Input should be a valid dictionary"),
        ("name: [a]\ninner: {width: 1}\n", "1: name: Input should be a valid string"),
        ("name: a\ninner:\n  width: 13\n", "3: inner.width: 13 is {unlucky}"),
    ],
)
def test_mistakes_name_file_line_and_remedy(write, text: str, expected: str) -> None:
    path = write(text)
    assert f"{path}:{expected}" in mistake(path)


def test_a_wrong_value_is_shown(write) -> None:
    assert "(given: 'wide')" in mistake(write("name: a\ninner: {width: wide}\n"))


def test_all_mistakes_are_named_at_once(write) -> None:
    message = mistake(write("inner:\n  width: wide\n  depth: 3\n"))
    assert "'name' is missing" in message
    assert ":2: inner.width" in message
    assert ":3: unknown key 'inner.depth'" in message


def test_what_may_be_a_name_or_written_inline_is_explained_once(write) -> None:
    message = mistake(write("name: a\ninner: {width: 1}\neither:\n  wdth: 1\n"))
    assert message.count(";") == 2  # missing; unknown; did you mean
    assert "string" not in message


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("name: a\nname: b\n", 2, "the key 'name' is given twice"),
        ("name: a\ninner:\n  width: 1\n  width: 2\n", 4, "the key 'width' is given twice"),
        ("name: {{a}}\n", 1, "a key must be plain text"),
        ("name: a\n? [b, c]\n: d\n", 2, "a key must be plain text"),
        ("name: 'a\n", 2, "found unexpected end of stream"),
        ("name: a\n  inner: b\n", 2, "mapping values are not allowed here"),
        ("name: !!python/object:os.system {}\n", 1, "could not determine a constructor"),
        ("name: *a\n", 1, "found undefined alias"),
        ("name: a\n---\nname: b\n", 2, "but found another document"),
    ],
)
def test_not_yaml(write, text: str, line: int, problem: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}:{line}: not valid YAML: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"), [("", "NoneType"), ("- a\n", "list"), ("a\n", "str"), ("3\n", "int")]
)
def test_not_a_mapping(write, text: str, found: str) -> None:
    message = mistake(write(text))
    assert message.endswith(
        f"expected a mapping with the keys name, inner, many, by_name, either, found {found}"
    )


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file: .*missing\.yaml"):
        read_yaml(tmp_path / "missing.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(ConfigError, match="cannot read"):
            read_yaml(path)


def test_data_without_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^inline: the key 'name' is missing"):
        validate(Outer, Document({"inner": {"width": 1}}))


def test_lines_of_keys_and_items(write) -> None:
    path = write("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n")
    document = read_yaml(path)
    assert document.where(("a", "c", 1, "y")) == f"{path}:5"
    assert document.where(("a", "c", 0)) == f"{path}:4"
    assert document.where(("a", "c", 1, "z", "deeper")) == f"{path}:5"
    assert document.where() == str(path)


def test_did_you_mean() -> None:
    assert did_you_mean("atention", ["mlp", "attention"]) == (
        "did you mean 'attention'? known: mlp, attention"
    )
    assert did_you_mean("zzz", ["mlp", "attention"]) == "known: mlp, attention"
