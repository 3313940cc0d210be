"""The shape of a mergekit configuration, and how it gives every tensor its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

Number = bool | float
_NEAR = 1e-9  # a gradient's position this close to an entry is that entry


class Conditional(BaseModel):
    """A value for the tensors whose name contains ``filter``; for all without one."""

    model_config = ConfigDict(extra="forbid")

    value: Number | list[Number]
    filter: str | None = None

    def covers(self, tensor: str) -> bool:
        """Whether it speaks about a tensor."""
        return self.filter in (None, "*") or str(self.filter) in tensor


Setting = Number | list[Number] | list[Conditional]
Settings = dict[str, Setting]


class _Level(BaseModel):
    """Whatever may set parameters."""

    parameters: Settings = {}

    @field_validator("parameters", mode="before")
    @classmethod
    def _shape(cls, value: Any) -> Any:
        for name, setting in (value or {}).items() if isinstance(value or {}, dict) else ():
            if not _is_setting(setting):
                raise ValueError(
                    f"{name} is {setting!r}; expected a number, a list of numbers, or a list of "
                    f"{{filter: PART OF A NAME, value: A NUMBER OR A LIST OF NUMBERS}}"
                )
        return {} if value is None else value


def _is_setting(given: Any) -> bool:
    if isinstance(given, list) and any(isinstance(each, dict) for each in given):
        keys = [set(each) if isinstance(each, dict) else set() for each in given]
        return all("value" in k and k <= {"value", "filter"} for k in keys) and all(
            _is_setting(each["value"]) for each in given
        )
    numbers = given if isinstance(given, list) else [given]
    return all(isinstance(each, bool | int | float) for each in numbers)


class Reference(BaseModel):
    """A model: a path or a hub name, with the path of a LoRA adapter on top where there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    lora: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, str):
            parts = value.split("+")
            if len(parts) > 2:
                raise ValueError("expected MODEL or MODEL+LORA")
            return dict(zip(("model", "lora"), parts, strict=False))
        if isinstance(value, dict) and "override_architecture" in value:
            raise ValueError("override_architecture cannot be expressed; leave it out")
        return value

    @field_validator("model", "lora", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = "@".join(str(value[k]) for k in ("path", "revision") if value.get(k))
        if isinstance(value, str) and "@" in value:
            raise ValueError(
                "a recipe cannot name a revision; download that revision and give its directory"
            )
        return value.rstrip("/") if isinstance(value, str) and value != "/" else value


class Input(_Level):
    """An entry of ``models``."""

    model: Reference


class Source(Input):
    """An entry of a slice's ``sources``."""

    layer_range: tuple[int, int]


class Slice(_Level):
    """A range of blocks of the output."""

    sources: list[Source]
    base_model: Reference | None = None
    residual_weight: float | None = None


class Tokenizer(BaseModel):
    """The newer way to say where the vocabulary comes from."""

    source: Literal["union", "base"] | Reference = "union"
    tokens: dict[str, Any] | None = None
    pad_to_multiple_of: int | None = None


class Configuration(_Level):
    """The keys of a mergekit configuration; it ignores others, so they are kept to be named."""

    model_config = ConfigDict(extra="allow")

    merge_method: str
    base_model: Reference | None = None
    models: list[Input] | None = None
    slices: list[Slice] | None = None
    modules: dict[str, Any] | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Literal["union", "base"] | Reference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None


def evaluate(setting: Setting, tensor: str, t: float) -> Number | None:
    """What a setting gives a tensor at depth ``t`` (0 to 1), or None if it is silent about it.

    A list of numbers is a curve over the depth, through its entries at equal distances, straight
    between them. Of conditionals the first that covers the tensor counts.
    """
    if not isinstance(setting, list):
        return setting
    conditionals = [each for each in setting if isinstance(each, Conditional)]
    if not conditionals:
        return _along([each for each in setting if not isinstance(each, Conditional)], t)
    found = next((each for each in conditionals if each.covers(tensor)), None)
    return None if found is None else evaluate(_plain(found.value), tensor, t)


def _plain(value: Number | list[Number]) -> Setting:
    return value


def _along(curve: list[Number], t: float) -> Number | None:
    if not curve:
        return None
    at = t * (len(curve) - 1)
    if abs(at - round(at)) < _NEAR:
        return curve[round(at)]
    below = int(at)
    return curve[below] + (at - below) * (curve[below + 1] - curve[below])


def filters(setting: Setting) -> list[str]:
    """The substrings by which a setting tells tensors apart."""
    listed = setting if isinstance(setting, list) else []
    return [
        str(each.filter)
        for each in listed
        if isinstance(each, Conditional) and each.filter not in (None, "*")
    ]


def varies(settings: Mapping[str, Setting]) -> bool:
    """Whether any of the settings may give two tensors different values."""
    for setting in settings.values():
        listed = setting if isinstance(setting, list) else []
        if any(not isinstance(each, Conditional) for each in listed) or filters(setting):
            return True
        if any(isinstance(e, Conditional) and isinstance(e.value, list) for e in listed):
            return True
    return False
