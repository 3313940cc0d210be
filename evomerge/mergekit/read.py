"""A mergekit configuration as a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.checkpoints.layout import Place, layout
from evomerge.checkpoints.open import open_checkpoint
from evomerge.documents import Document, did_you_mean, read_yaml, validate
from evomerge.errors import ConfigError
from evomerge.mergekit.cells import selectors
from evomerge.mergekit.form import (
    Configuration,
    Number,
    Reference,
    Setting,
    Settings,
    evaluate,
    filters,
    varies,
)
from evomerge.mergekit.shared import SHARED, SIGNS, WITHOUT_MEANING, Point, Shared
from evomerge.mergekit.tokens import tokenizer_notes
from evomerge.recipe import Recipe, load_recipe

_DTYPES = ("float32", "float16", "bfloat16")
_VECTORS = ("norm", "bias")
Values = dict[str, Any]


def load_any(path: Path) -> tuple[Recipe, list[str]]:
    """A recipe from a recipe file or a mergekit configuration, told apart by ``merge_method``.

    The notes say, one line each, where the result differs from mergekit's or what was left out.

    Raises:
        ConfigError: names file, line and remedy.
    """
    document = read_yaml(path)
    if isinstance(document.data, dict) and "merge_method" in document.data:
        return read_mergekit(document, path.parent)
    return load_recipe(path), []


def read_mergekit(document: Document, folder: Path) -> tuple[Recipe, list[str]]:
    """The recipe of a parsed configuration, and notes; relative paths count from ``folder``.

    The base's tensor names are read if parameters differ between tensors.

    Raises:
        ConfigError: it holds what a recipe cannot express.
    """
    config = validate(Configuration, document)
    try:
        return _Reading(config, folder).recipe(document.path)
    except ConfigError as error:
        where = f"{document.where()}: "
        raise ConfigError(where + str(error).removeprefix(where)) from None


@dataclass(frozen=True)
class _Part:
    """Blocks ``first`` to ``last`` (all of them if None), with parameters of their own."""

    span: tuple[int, int] | None
    models: tuple[Settings, ...]
    parameters: Settings


@dataclass(frozen=True)
class _Reading:
    config: Configuration
    folder: Path

    @cached_property
    def shared(self) -> Shared:
        name = self.config.merge_method
        if name == "passthrough":
            raise ConfigError(
                "merge_method 'passthrough' stacks layers; a recipe merges models of one shape "
                "tensor by tensor, so this cannot be expressed"
            )
        if name not in SHARED:
            raise ConfigError(
                f"merge_method {name!r} is none that evomerge shares with mergekit; "
                f"{did_you_mean(name, list(SHARED))}"
            )
        return SHARED[name]

    @cached_property
    def parts(self) -> tuple[_Part, ...]:
        """The output from bottom to top, each with the settings of every model in ``listed``."""
        if self.config.modules is not None:
            raise ConfigError(
                "modules cannot be expressed: use models, whose filters may tell towers apart"
            )
        if (self.config.models is None) == (self.config.slices is None):
            raise ConfigError("expected either models or slices")
        if not self.listed:
            raise ConfigError("there is no model to merge")
        if self.config.models is not None:
            return (_Part(None, tuple(m.parameters for m in self.config.models), {}),)
        parts: list[_Part] = []
        for each in self.config.slices or []:
            if each.base_model or each.residual_weight is not None:
                raise ConfigError("base_model and residual_weight of a slice are not expressible")
            if [s.model for s in each.sources] != self.listed:
                raise ConfigError("every slice must list the same models in the same order")
            spans = {s.layer_range for s in each.sources}
            expected = parts[-1].span[1] if parts and parts[-1].span else 0
            span = next(iter(spans), (0, 0))
            if len(spans) != 1 or span[0] != expected or span[1] <= span[0]:
                found = ", ".join(str(list(s)) for s in sorted(spans))
                raise ConfigError(
                    f"a slice has layer_range {found}, expected one that begins at {expected}, the "
                    f"same for all sources: a recipe keeps every layer in its place (no stacking)"
                )
            parts.append(_Part(span, tuple(s.parameters for s in each.sources), each.parameters))
        return tuple(parts)

    @cached_property
    def listed(self) -> list[Reference]:
        """The models as listed, in their order."""
        slices = self.config.slices
        entries = self.config.models if slices is None else slices[0].sources if slices else []
        found = [entry.model for entry in entries or []]
        if len(set(found)) < len(found):
            raise ConfigError("a model is listed twice; mergekit would use it once")
        return found

    @cached_property
    def base(self) -> Reference:
        """``base_model``; without one what an adapter lies on, or the first model."""
        given = self.config.base_model
        if given is not None and given.lora is not None:
            raise ConfigError("base_model has a LoRA; merge that into it first")
        if given is None and self.shared.takes != "all":
            raise ConfigError(f"merge_method {self.config.merge_method!r} needs a base_model")
        adapted = [m for m in self.listed if m.lora is not None]
        return given or Reference(model=[*adapted, *self.listed][0].model)

    @cached_property
    def merged(self) -> list[tuple[Reference, int | None]]:
        """The models that become experts, with their place among ``listed`` (None: not there)."""
        found: list[tuple[Reference, int | None]] = [(m, i) for i, m in enumerate(self.listed)]
        relative = self.shared.method in ("nuslerp", "multislerp") and self.config.base_model
        if self.shared.takes == "all" and not relative:
            # mergekit adds the base_model to models, though not to the sources of slices
            added = self.config.models is not None and self.base not in self.listed
            return [*found, (self.base, None)] if added and self.config.base_model else found
        found = [(model, i) for model, i in found if model != self.base]
        if self.shared.method == "nuslerp" and len(found) < len(self.listed):
            raise ConfigError("base_model of nuslerp must not be one of the two models")
        if self.shared.takes == "one" and len(found) != 1:
            raise ConfigError(
                f"merge_method {self.config.merge_method!r} takes base_model and exactly one other "
                f"model, found {len(found)} others"
            )
        return found

    @cached_property
    def names(self) -> list[str]:
        """A name for each expert: the last part of its path, or "base"."""
        names: list[str] = []
        for model, _ in self.merged:
            stem = Path(model.lora or model.model).name or "model"
            name, number = ("base", 2) if model == self.base else (stem, 2)
            while name in names or (name == "base" and model != self.base):
                name, number = f"{stem}-{number}", number + 1
            names.append(name)
        return names

    def recipe(self, path: Path | None) -> tuple[Recipe, list[str]]:
        notes = [self.shared.differs] if self.shared.differs else []
        groups, more = self.groups()
        if any(g.get("normalise") and any(w < 0 for w in g["weight"].values()) for g in groups):
            notes.append(SIGNS)
        base = self._local(self.base.model)
        data = {
            "base": {"path": base},
            "experts": {
                name: {"path": self._source(model)}
                for name, (model, _) in zip(self.names, self.merged, strict=True)
            },
            "method": self.shared.method,
            "parameters": [_short(group) for group in groups],
            "dtype": self._dtype(notes),
        }
        recipe = validate(Recipe, Document(data, path))
        notes += more + self._left_out()
        others = [self._local(m.model) for m in self.listed if m.lora is None]
        notes += tokenizer_notes(self.config, base, others, self._local)
        return recipe, notes

    def _source(self, model: Reference) -> str:
        """The expert's path; an adapter must lie on the base, since a recipe applies it there."""
        if model.lora is None:
            return self._local(model.model)
        if model.model != self.base.model:
            raise ConfigError(
                f"the adapter {model.lora} lies on {model.model}, which is not the base "
                f"{self.base.model}; merge it into its model first"
            )
        return self._local(model.lora)

    def _local(self, path: str) -> str:
        local = (self.folder / path).expanduser()
        return str(local.resolve()) if local.exists() else path

    def _dtype(self, notes: list[str]) -> str:
        names = [d.removeprefix("torch.") for d in (self.config.dtype, self.config.out_dtype) if d]
        for name in names:
            if name not in _DTYPES:
                raise ConfigError(f"dtype {name!r}: expected one of {', '.join(_DTYPES)}")
        if (self.config.dtype or "").removeprefix("torch.") != "float32":
            notes.append(
                "all arithmetic is float32 with one rounding at the end; mergekit's is in dtype, "
                "or in that of the files"
            )
        return names[-1] if names else "base"

    def _left_out(self) -> list[str]:
        notes = []
        given = {name for _, settings in self._settings() for name in settings}
        for name in sorted(given - self.shared.parameters - WITHOUT_MEANING):
            notes.append(
                f"parameter {name!r} has no meaning for {self.config.merge_method!r}; left out"
            )
        if self.config.chat_template:
            notes.append("chat_template is left out: the base's own is kept")
        for key in self.config.model_extra or {}:
            notes.append(f"the key {key!r} is left out")
        return notes

    def _settings(self) -> list[tuple[str, Settings]]:
        """Every level that sets parameters, with its name."""
        found = [("parameters", self.config.parameters)]
        for part in self.parts:
            found.append(("a slice's parameters", part.parameters))
            models = zip(self.listed, part.models, strict=True)
            found += [(f"the parameters of {m.model}", s) for m, s in models]
        return found

    def groups(self) -> tuple[list[Values], list[str]]:
        """The recipe's entries, every per-expert value as a mapping, and notes."""
        uniform = not any(varies(settings) for _, settings in self._settings())
        if uniform and self.parts[0].span is None:
            return [{"tensors": "*/*/*", **self.values("", 0.0, self.parts[0])}], []
        reference = self._local(self.base.model)
        places = layout(open_checkpoint(reference).tensors)
        depths = self._depths(places)
        wanted = {name: self.values(name, *depths[name]) for name in places}
        found, notes = self._by_cell(places, wanted)
        groups: list[Values] = []
        kinds: list[tuple[Values, list[Place]]] = []
        for place, values in found.items():
            same = next((cells for kind, cells in kinds if kind == values), None)
            if same is None:
                kinds.append((values, [place]))
            else:
                same.append(place)
        for values, cells in kinds:
            groups += [{"tensors": s, **values} for s in selectors(cells, found)]
        return groups, notes

    def _depths(self, places: Mapping[str, Place]) -> dict[str, tuple[float, _Part]]:
        """Where each tensor lies: its depth, 0 to 1, within a part; 0 outside the blocks."""
        counts: dict[str, int] = {}
        for place in places.values():
            if place.block is not None:
                counts[place.tower] = max(counts.get(place.tower, 0), place.block + 1)
        if self.parts[0].span is not None:
            if len(counts) != 1:
                raise ConfigError(
                    f"slices are for models with one tower of layers, this base has "
                    f"{', '.join(counts) or 'none'}: use models"
                )
            blocks, last = next(iter(counts.values())), self.parts[-1].span
            if last is not None and last[1] != blocks:
                raise ConfigError(
                    f"the slices end at layer {last[1]}, the base has {blocks}: a recipe keeps "
                    f"every layer in its place"
                )
        return {name: self._depth(place, counts) for name, place in places.items()}

    def _depth(self, place: Place, counts: Mapping[str, int]) -> tuple[float, _Part]:
        if place.block is None:
            first = place.tower == "embeddings" or place.module == "embedding"
            return 0.0, self.parts[0 if first else -1]
        for part in self.parts:
            low, high = part.span or (0, counts[place.tower])
            if low <= place.block < high:
                depth = (place.block - low) / (high - low - 1) if high - low > 1 else 1.0
                return depth, part
        raise AssertionError("the parts cover every block")

    def values(self, tensor: str, depth: float, part: _Part) -> Values:
        """Our parameters of one tensor."""
        shared = self.shared
        each: dict[str, tuple[float, ...]] = {}
        for name, default in shared.each.items():
            found = []
            for model, at in self.merged:
                own = part.models[at] if at is not None else {}
                found.append(self._value(name, default, tensor, depth, [own, part.parameters]))
                if found[-1] is None:
                    raise ConfigError(f"no value of {name!r} for {model.model}{_of(tensor)}")
            each[name] = tuple(float(v) for v in found if v is not None)
        overall: dict[str, Number] = {}
        for name, default in shared.overall.items():
            value = self._value(name, default, tensor, depth, [part.parameters])
            if value is None:
                raise ConfigError(f"no value of {name!r}{_of(tensor)}; set it under parameters")
            overall[name] = value
        values = shared.read(Point(each, overall, self.config.base_model is not None))
        return {
            name: dict(zip(self.names, v, strict=True)) if isinstance(v, tuple) else v
            for name, v in values.items()
        }

    def _value(
        self, name: str, default: Any, tensor: str, depth: float, levels: Sequence[Settings]
    ) -> Any:
        """The value of the first level that has one for the tensor."""
        for settings in (*levels, self.config.parameters):
            if name in settings:
                value = evaluate(settings[name], tensor, depth)
                if value is not None:
                    return value
        return default

    def _by_cell(
        self, places: Mapping[str, Place], wanted: Mapping[str, Values]
    ) -> tuple[dict[Place, Values], list[str]]:
        """The values of each tower, block and kind of module; all its tensors share them.

        Norms and biases that stand within another kind of module (``self_attn.q_norm``), and so
        take its values in mergekit, take those of the other norms of their block.
        """
        cells: dict[Place, list[str]] = {}
        for name, place in places.items():
            cells.setdefault(place, []).append(name)
        found: dict[Place, Values] = {}
        parted: list[tuple[str, str]] = []
        for place, names in cells.items():
            kinds: dict[str, list[str]] = {}
            for name in names:
                kinds.setdefault(repr(wanted[name]), []).append(name)
            most, *others = sorted(kinds.values(), key=len, reverse=True)
            found[place] = wanted[most[0]]
            for names in others:
                self._refuse_split(most[0], names[0], places)
                parted.append((names[0], most[0]))
        return found, [
            f"a recipe has one value for all norms and one for all biases of a block: {name} "
            f"takes that of {one} ({len(parted)} such cases)"
            for name, one in parted[:1]
        ]

    def _refuse_split(self, one: str, other: str, places: Mapping[str, Place]) -> None:
        """ConfigError if a filter sets two tensors of one kind apart on purpose."""
        for level, settings in self._settings():
            for name, setting in settings.items():
                for text in _splitting(setting, one, other):
                    covered = {places[n].module for n in places if text in n}
                    if covered <= set(_VECTORS) or places[one].module not in _VECTORS:
                        raise ConfigError(
                            f"the filter {text!r} of {name!r} in {level} sets {other} apart from "
                            f"{one}, which a recipe cannot: it tells tensors apart by tower, block "
                            f"and kind of module (attention, mlp, norm, bias, embedding, head); "
                            f"use filters such as self_attn, mlp, embed_tokens or lm_head"
                        )


def _splitting(setting: Setting, one: str, other: str) -> list[str]:
    return [text for text in filters(setting) if (text in one) != (text in other)]


def _of(tensor: str) -> str:
    return f" of {tensor}" if tensor else ""


def _short(group: Values) -> Values:
    """The group with one number in place of a mapping of equal ones."""
    short = {}
    for name, value in group.items():
        equal = isinstance(value, dict) and len(set(value.values())) == 1
        short[name] = next(iter(value.values())) if equal else value
    return short
