"""Experiment: everything that defines a search, read from one YAML file.

base: org/base-model                     # a path, a hub name, or zoo:...
experts: {math: org/math-model, code: ./code-lora}
directions: {math: expert, wudi: {method: wudi}}   # optional: what to search over
statistics: ./calibration                # optional: what `evomerge calibrate` wrote
space: layerwise-task-arithmetic         # a name, a file, or written inline
objectives: [zoo/vqa, ./my-task]         # names, folders, or written inline
optimise: {maximise: [mean, min]}        # what the front is over
search: {algorithm: auto, seed: 0}       # optional
budget: {candidates: 80}
backend: {name: transformers}
pool: {name: inline}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.backends.config import BackendConfig, TransformersConfig, VllmConfig
from evomerge.content import find
from evomerge.documents import Document, did_you_mean, read_yaml, validate
from evomerge.errors import ConfigError
from evomerge.recipe import Group
from evomerge.space import SpaceSpec

AGGREGATES = ("mean", "min")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scalarise(_Model):
    """One number out of several objectives, for a search that takes only one."""

    rule: Literal["weighted-sum", "chebyshev"]
    weights: dict[str, float] = {}  # 1 for those not named


class Optimise(_Model):
    """What the front is over: names of objectives, ``mean`` or ``min`` over the maximised ones."""

    maximise: tuple[str, ...] = ()
    minimise: tuple[str, ...] = ()
    scalarise: Scalarise | None = None
    reference: dict[str, float] = {}  # of the hypervolume; 0 where something is maximised

    @model_validator(mode="after")
    def _check(self) -> Optimise:
        names = self.names
        if not names:
            raise ValueError("name at least one objective in maximise or minimise")
        if len(set(names)) < len(names):
            raise ValueError(f"an objective is named twice: {', '.join(names)}")
        for name in self.minimise:
            if name not in self.reference:
                raise ValueError(
                    f"{name!r} is minimised, so its worst acceptable value must be declared, "
                    f"for example reference: {{{name}: 100}}"
                )
        for key, given in (
            ("reference", self.reference),
            ("weights", self.scalarise.weights if self.scalarise else {}),
        ):
            for name in given:
                if name not in names:
                    raise ValueError(f"{key} names {name!r}; {did_you_mean(name, names)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.maximise, *self.minimise)

    @property
    def signs(self) -> tuple[float, ...]:
        """+1 for what is maximised, -1 for what is minimised, in the order of ``names``."""
        return (1.0,) * len(self.maximise) + (-1.0,) * len(self.minimise)

    @property
    def reference_point(self) -> tuple[float, ...]:
        """The hypervolume's reference, in the order of ``names``, as measured (not negated)."""
        return tuple(self.reference.get(name, 0.0) for name in self.names)


class Racing(_Model):
    """Candidates are asked for their items in rungs, and end once the front dominates them.

    ``level`` is the probability with which a candidate that would have reached the front may be
    dropped.
    """

    level: float = Field(default=0.05, gt=0, lt=1)


class SearchConfig(_Model):
    """Which algorithm proposes candidates; ``options`` are its own settings.

    ``auto`` chooses one when the study is opened, and says why.
    """

    algorithm: str = "auto"
    seed: int = 0
    options: dict[str, int | float | bool | None] = {}
    racing: Racing | Literal[False] = False


class Budget(_Model):
    """When to stop: whichever is reached first. Reference points count towards none of them but
    the wall time.

    ``candidates`` are full evaluations: where candidates are raced or probed, N of them are as many
    items as N candidates have, so that a budget costs the same whatever searches. A candidate that
    failed counts as one. ``items`` counts each item of each candidate; ``tokens``, what they said.
    """

    candidates: int | None = Field(default=None, ge=1)
    items: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Budget:
        if not any((self.candidates, self.items, self.tokens, self.hours)):
            raise ValueError("give at least one of candidates, items, tokens, hours")
        return self


class PoolConfig(_Model):
    """Who evaluates candidates: this process, or Ray actors with the declared resources.

    ``workers`` is how many actors there are once the cluster has room for them, each with its
    ``cpus`` and ``gpus`` on one node; a fraction of a GPU shares it. ``time_limit`` is in seconds,
    for what a worker is given at once; one that takes longer is replaced. ``address`` is that of a
    running cluster, HOST:PORT or ``auto``; without one, Ray is started on this machine.
    """

    name: Literal["inline", "ray"] = "inline"
    workers: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    time_limit: float | None = Field(default=None, gt=0)
    address: str | None = None

    @model_validator(mode="after")
    def _check(self) -> PoolConfig:
        if self.name == "inline" and self.workers != 1:
            raise ValueError("the inline pool has one worker; use pool: {name: ray, workers: N}")
        if self.name == "inline" and (self.time_limit or self.address):
            raise ValueError("time_limit and address are of workers; use pool: {name: ray, ...}")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus is {self.gpus:g}, expected a fraction of one, or whole GPUs")
        if not self.cpus and not self.gpus:
            raise ValueError("a worker needs cpus or gpus, else no number of them fills a node")
        return self


def _check_gpus(backend: BackendConfig, pool: PoolConfig) -> None:
    """ValueError unless what a model takes of GPUs is what its worker gets."""
    if pool.name != "ray" or not pool.gpus or not isinstance(backend, VllmConfig):
        return
    if pool.gpus != backend.tensor_parallel and max(pool.gpus, backend.tensor_parallel) > 1:
        raise ValueError(
            f"pool: gpus is {pool.gpus:g}, expected {backend.tensor_parallel} as tensor_parallel "
            f"of the backend says (or 0 on CPUs)"
        )
    if pool.gpus < 1 and (backend.memory or 1) > pool.gpus:
        raise ValueError(
            f"pool: workers with {pool.gpus:g} of a GPU share it, so give backend: memory, at most "
            f"{pool.gpus:g}; vLLM takes most of a GPU otherwise"
        )


class Direction(_Model):
    """A static merge whose result is searched over as if it were an expert.

    It merges ``experts`` (all of the experiment's by default) on the tensors that the space moves,
    with the method's defaults where ``parameters`` gives nothing, and is a reference point as well.
    In its place ``expert`` keeps the expert of that name in the search; without any direction, all
    experts are.
    """

    method: str
    experts: tuple[str, ...] | None = None
    parameters: tuple[Group, ...] | None = None
    seed: int = 0


class Experiment(_Model):
    """A search as a user declares it; names are resolved, nothing is opened yet.

    With ``directions`` the space's coefficients are those of the directions: of static merges, and
    of the experts that are named there as ``expert``; the other experts are only compared with.
    ``made`` is the folder in which the merges were written. ``starts`` are
    genomes of the space by name, scored beside the reference points and told to the search first.
    """

    name: str
    base: str
    experts: dict[str, str] = Field(min_length=1)
    directions: dict[str, Direction | Literal["expert"]] = {}
    statistics: str | None = None
    made: str | None = None
    starts: dict[str, tuple[float, ...]] = {}
    space: SpaceSpec
    objectives: tuple[dict[str, Any], ...] = Field(min_length=1)
    optimise: Optimise
    search: SearchConfig = SearchConfig()
    auto: str = ""  # why `auto` chose the search, where it did
    budget: Budget
    backend: BackendConfig = TransformersConfig()
    pool: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        _check_gpus(self.backend, self.pool)
        return self

    def _changing(self) -> dict[str, bool | set[str]]:
        """No part of what a study is; unused newer fields too, as older ledgers lack them."""
        fields = ("directions", "statistics", "starts", "auto")
        unused: dict[str, bool | set[str]] = {n: True for n in fields if not getattr(self, n)}
        if not self.search.racing:
            unused["search"] = {"racing"}
        return {"name": True, "budget": True, "pool": True, "made": True, **unused}

    def identity(self) -> dict[str, Any]:
        """The experiment without what may change between two sessions of one study."""
        return self.model_dump(mode="json", exclude=self._changing())


class _File(_Model):
    """An experiment as written: names and paths are not resolved yet."""

    base: str
    experts: dict[str, str] = Field(min_length=1)
    directions: dict[str, Direction | Literal["expert"]] = {}
    statistics: str | None = None
    space: str | SpaceSpec
    objectives: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    optimise: Optimise
    search: SearchConfig = SearchConfig()
    budget: Budget
    backend: BackendConfig = TransformersConfig()
    pool: PoolConfig = PoolConfig()
    summary: str = ""

    @model_validator(mode="after")
    def _check(self) -> _File:
        _check_gpus(self.backend, self.pool)
        for name, direction in self.directions.items():
            if direction == "expert":
                if name not in self.experts:
                    hint = did_you_mean(name, list(self.experts))
                    raise ValueError(f"direction {name!r}: no expert has that name; {hint}")
                continue
            if name in self.experts:
                raise ValueError(
                    f"direction {name!r} has the name of an expert; give it another, or write "
                    f"{name}: expert to search over the expert itself"
                )
            for expert in direction.experts or ():
                if expert not in self.experts:
                    raise ValueError(
                        f"direction {name!r} names expert {expert!r}; "
                        f"{did_you_mean(expert, list(self.experts))}"
                    )
        return self


def load_experiment(reference: str | Path) -> Experiment:
    """Reads an experiment by name (of a shipped one), folder or file.

    Raises:
        ConfigError: one line that names file, line and remedy.
    """
    path = _experiment_file(str(reference))
    name = path.parent.resolve().name if path.name == "experiment.yaml" else path.stem
    return experiment_of(read_yaml(path), path.parent, name)


def experiment_of(document: Document, folder: Path, name: str) -> Experiment:
    """The experiment that a document holds, whose paths count from ``folder``.

    Raises:
        ConfigError: one line that names every mistake.
    """
    written = validate(_File, document)
    return Experiment(
        name=name,
        base=_source(written.base, folder),
        experts={name: _source(ref, folder) for name, ref in written.experts.items()},
        directions=written.directions,
        statistics=written.statistics and _source(written.statistics, folder),
        space=load_space(written.space, folder),
        objectives=tuple(_objective(o, folder) for o in written.objectives),
        **{
            key: getattr(written, key)
            for key in ("optimise", "search", "budget", "backend", "pool")
        },
    )


def _experiment_file(reference: str) -> Path:
    """A file, a folder that holds ``experiment.yaml``, or else a name."""
    path = Path(reference).expanduser()
    if (path / "experiment.yaml").is_file():
        return path / "experiment.yaml"
    return path if path.suffix in (".yaml", ".yml") else find("experiments", reference)


def load_space(reference: str | SpaceSpec, folder: Path) -> SpaceSpec:
    """A space by name or file (relative to ``folder``), or as it stands if written inline."""
    if isinstance(reference, SpaceSpec):
        return reference
    local = folder / reference
    path = local if local.is_file() else find("search_spaces", reference)
    return validate(SpaceSpec, read_yaml(path))


def _source(reference: str, folder: Path) -> str:
    """A path relative to the experiment's folder becomes absolute; other names stay as they are."""
    local = (folder / reference).expanduser()
    return str(local.resolve()) if local.exists() else reference


def _objective(reference: str | dict[str, Any], folder: Path) -> dict[str, Any]:
    """Where an objective is defined, as plain data that any worker can open."""
    if isinstance(reference, dict):
        return {"inline": reference, "folder": str(folder.resolve())}
    local = folder / reference
    return {"source": str(local.resolve()) if local.exists() else reference}


def check_names(experiment: Experiment, objectives: tuple[str, ...]) -> None:
    """ConfigError if ``optimise`` names something that is neither an objective nor an aggregate."""
    known = (*objectives, *AGGREGATES)
    for name in experiment.optimise.names:
        if name not in known:
            raise ConfigError(f"optimise names {name!r}; {did_you_mean(name, known)}")


def experiment_from(data: dict[str, Any]) -> Experiment:
    """The experiment that ``model_dump`` wrote."""
    return validate(Experiment, Document(data))
