"""The methods that mergekit and evomerge both have, and how the parameters of each correspond."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.errors import ConfigError
from evomerge.mergekit.form import Number

REQUIRED = None
Values = Mapping[str, Any]  # a recipe's parameters: a number, a bool, or a tuple over the experts


@dataclass(frozen=True)
class Point:
    """mergekit's parameters for one tensor: of every model, and of the merge as a whole.

    ``each`` maps a parameter to its values in the order of the experts. ``based`` says that the
    configuration names a ``base_model``.
    """

    each: dict[str, tuple[float, ...]]
    overall: dict[str, Number]
    based: bool = True


@dataclass(frozen=True)
class Shared:
    """A method of mergekit and ours.

    ``takes`` says what its models are: "all" are merged; or "others" than the base, relative to it;
    or exactly "one" other than the base. ``each`` and ``overall`` are mergekit's parameters with
    their defaults. ``still`` are those that leave a tensor at base where they are 0. ``differs``
    is the note for whoever reads or writes it.
    """

    method: str
    takes: Literal["all", "others", "one"]
    each: Mapping[str, float | None]
    overall: Mapping[str, Number | None]
    read: Callable[[Point], dict[str, Any]]
    write: Callable[[Values], Point]
    still: tuple[str, ...] = ()
    differs: str = ""

    @property
    def parameters(self) -> set[str]:
        """mergekit's names of the parameters that have a meaning."""
        return {*self.each, *self.overall}


def _sums_to_one(point: Point, switch: str) -> tuple[float, ...]:
    """The weights of an average: all that counts is their ratio, unless the switch is off."""
    weight = point.each["weight"]
    if not point.overall[switch] and abs(sum(weight) - 1) > 1e-6:
        raise ConfigError(
            f"{switch}: false with weights that sum to {sum(weight):g} is not expressible, since a "
            f"recipe divides by their sum; give weights that sum to 1, or use task_arithmetic"
        )
    return weight


def _fixed(values: Values, **required: float) -> None:
    """ConfigError if a parameter that mergekit lacks has another value than mergekit's."""
    for name, expected in required.items():
        found = values[name]
        if any(v != expected for v in (found if isinstance(found, tuple) else (found,))):
            raise ConfigError(
                f"{name} {found!r} cannot be expressed in mergekit, which has it fixed at "
                f"{expected:g}; set it to that"
            )


def _read_nuslerp(point: Point) -> dict[str, Any]:
    whole, columns = point.overall["nuslerp_flatten"], point.overall["nuslerp_row_wise"]
    if not whole and columns:
        raise ConfigError(
            "nuslerp_row_wise: true takes the columns of a matrix as vectors, which a recipe "
            "cannot; leave it false, which takes its rows"
        )
    weight = point.each["weight"]
    balanced = abs(sum(weight)) < 1e-6  # mergekit then goes half the way
    return {
        "weight": (1.0, 1.0) if balanced else weight,
        "task_vectors": point.based,
        "row_wise": not whole,
    }


def _write_nuslerp(values: Values) -> Point:
    _fixed(values, scale=1)
    overall: dict[str, Number] = {
        "nuslerp_flatten": not values["row_wise"],
        "nuslerp_row_wise": False,
    }
    return Point({"weight": values["weight"]}, overall, bool(values["task_vectors"]))


def _write_multislerp(values: Values) -> Point:
    _fixed(values, scale=1)
    return Point({"weight": values["weight"]}, {}, bool(values["task_vectors"]))


def _write_karcher(values: Values) -> Point:
    _fixed(values, scale=1, task_vectors=0)
    if len(set(values["weight"])) > 1:
        raise ConfigError("karcher in mergekit has no weights; make them equal")
    return Point({}, {}, False)


def _write_stock(values: Values) -> Point:
    _fixed(values, scale=1)
    return Point({}, {"filter_wise": bool(values["per_row"])})


def _write_sce(values: Values) -> Point:
    _fixed(values, scale=1, weight=1)
    return Point({}, {"select_topk": values["density"]})


def _write_nearswap(values: Values) -> Point:
    _fixed(values, scale=1)
    return Point({}, {"t": values["t"]})


def _write_fusion(values: Values) -> Point:
    _fixed(values, scale=1, spread=1.5)
    return Point({}, {})


def _write_ram(values: Values) -> Point:
    _fixed(values, scale=1, weight=1)
    return Point({}, {name: values[name] for name in ("r", "alpha", "epsilon")})


def _read_vectors(point: Point, thinned: str | None, elects: bool) -> dict[str, Any]:
    """task_arithmetic and its kin: ``thinned`` by "size", "middle", "chance" or "rank"."""
    weight, overall = point.each["weight"], point.overall
    scale = float(overall["lambda"])
    values: dict[str, Any] = {"weight": weight}
    if elects:
        values["normalise"] = bool(overall["normalize"])
    elif overall["normalize"]:
        total = sum(weight)
        scale /= total if abs(total) >= 1e-8 else 1.0
    if thinned is None:
        return {**values, "scale": scale}
    density = tuple(min(d, 1.0) for d in point.each["density"])
    if thinned in ("size", "middle") and overall["rescale"] and any(d < 1 for d in density):
        raise ConfigError(
            "rescale: true (kept entries brought back to the 1-norm of all) is not expressible "
            "here; set it to false"
        )
    if thinned in ("chance", "rank") and not overall["rescale"]:
        scale *= _undone(density, thinned)
    if thinned == "middle":
        # mergekit leaves out fewer of the largest where gamma and density exceed 1 together
        pairs = zip(point.each["gamma"], density, strict=True)
        values["gamma"] = tuple(min(g, 1 - d) for g, d in pairs)
    if thinned == "rank":
        values["epsilon"] = point.each["epsilon"]
    return {**values, "density": density, "scale": scale}


def _undone(density: tuple[float, ...], thinned: str) -> float:
    """The factor that takes back our rescaling by the density, where one number can."""
    if all(d == 1 for d in density):
        return 1.0
    if thinned == "rank" or len(set(density)) > 1:
        raise ConfigError(
            "rescale: false is expressible for DARE with one density for all models only; set it "
            "to true"
        )
    return density[0]


def _write_vectors(values: Values, thinned: str | None, elects: bool) -> Point:
    each = {"weight": values["weight"]}
    overall: dict[str, Number] = {"lambda": values["scale"]}
    if elects:
        overall["normalize"] = bool(values["normalise"])
    if thinned is not None:
        each["density"] = values["density"]
    if thinned == "rank":
        each["epsilon"] = values["epsilon"]
        for d, e in zip(values["density"], values["epsilon"], strict=True):
            if d < 1 and not (e < d and d + e < 1):
                raise ConfigError(
                    f"density {d:g} with epsilon {e:g}: mergekit wants density ± epsilon strictly "
                    f"between 0 and 1; make epsilon smaller"
                )
    if thinned == "middle":
        pairs = list(zip(values["density"], values["gamma"], strict=True))
        if any(d < 1 and g <= 0 for d, g in pairs):
            raise ConfigError(
                "gamma 0 with a density below 1: mergekit then drops the whole change; use ties, "
                "or a small gamma"
            )
        each["density"] = tuple(min(d, 1 - g) for d, g in pairs)
        each["gamma"] = values["gamma"]
    return Point(each, overall)


def _vectors(method: str, thinned: str | None, elects: bool, **more: Any) -> Shared:
    each: dict[str, float | None] = {"weight": REQUIRED}
    each |= {"density": 1.0} if thinned else {}
    each |= {"gamma": 0.01} if thinned == "middle" else {}
    each |= {"epsilon": 0.15} if thinned == "rank" else {}
    overall: dict[str, Number | None] = {
        "normalize": method in ("ties", "della"),
        "lambda": 1.0,
        "rescale": thinned in ("chance", "rank"),
    }
    return Shared(
        method,
        "others",
        each,
        overall,
        lambda point: _read_vectors(point, thinned, elects),
        lambda values: _write_vectors(values, thinned, elects),
        ("weight",),
        **more,
    )


_DARE = (
    "DARE here divides what is kept by the density, in mergekit by the ratio of the 1-norms before "
    "and after; the masks are other random ones"
)
_DELLA = (
    "DELLA here divides each entry by its own probability of being kept, in mergekit all by the "
    "ratio of the 1-norms before and after; the masks are other random ones"
)
_CRUMBS = (
    "breadcrumbs here ranks the entries of each row, in mergekit those of the whole tensor; and "
    "where gamma of a tensor is less than one entry, mergekit drops the whole change"
)
SIGNS = (
    "where weights differ in sign, mergekit divides by their sum, evomerge by that of their sizes"
)

SHARED: Mapping[str, Shared] = {
    "linear": Shared(
        "linear",
        "all",
        {"weight": REQUIRED},
        {"normalize": True},
        lambda point: {"weight": _sums_to_one(point, "normalize")},
        lambda values: Point({"weight": values["weight"]}, {}, False),
    ),
    "slerp": Shared(
        "slerp",
        "one",
        {},
        {"t": REQUIRED},
        lambda point: {"t": point.overall["t"]},
        lambda values: Point({}, {"t": values["t"]}),
        ("t",),
    ),
    "nuslerp": Shared(
        "nuslerp",
        "all",
        {"weight": REQUIRED},
        {"nuslerp_flatten": True, "nuslerp_row_wise": False},
        _read_nuslerp,
        _write_nuslerp,
    ),
    "multislerp": Shared(
        "multislerp",
        "all",
        {"weight": REQUIRED},
        {"normalize_weights": True},
        lambda point: {
            "weight": _sums_to_one(point, "normalize_weights"),
            "task_vectors": point.based,
        },
        _write_multislerp,
    ),
    "karcher": Shared(
        "karcher",
        "all",
        {},
        {},
        lambda point: {"weight": 1.0},
        _write_karcher,
        differs="the Karcher mean is iterated to convergence here, in mergekit for max_iter steps "
        "or to tol, which are left out",
    ),
    "model_stock": Shared(
        "model_stock",
        "others",
        {},
        {"filter_wise": False},
        lambda point: {"per_row": bool(point.overall["filter_wise"])},
        _write_stock,
        differs="where task vectors point away from each other on average, Model Stock gives the "
        "base here and goes beyond it in mergekit, which also counts products of their lengths "
        "below 1e-6 as 1e-6",
    ),
    "sce": Shared(
        "sce",
        "others",
        {},
        {"select_topk": 1.0},
        lambda point: {"density": point.overall["select_topk"]},
        _write_sce,
        ("select_topk",),
        "SCE here weighs experts by the squares of their task vectors always, in mergekit equally "
        "where the mean squares sum to less than 1e-6 (most tensors of ordinary fine-tunes)",
    ),
    "nearswap": Shared(
        "nearswap",
        "one",
        {},
        {"t": REQUIRED},
        lambda point: {"t": point.overall["t"]},
        _write_nearswap,
        ("t",),
    ),
    "arcee_fusion": Shared(
        "arcee_fusion",
        "one",
        {},
        {},
        lambda point: {},
        _write_fusion,
        differs="quantiles are of all entries here, in mergekit of a million drawn at random in "
        "larger tensors",
    ),
    "ram": Shared(
        "ram",
        "others",
        {},
        {"epsilon": 1e-5},
        lambda point: {"r": 0.0, "epsilon": point.overall["epsilon"]},
        _write_ram,
    ),
    "ramplus_tl": Shared(
        "ram",
        "others",
        {},
        {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
        lambda point: {name: point.overall[name] for name in ("r", "alpha", "epsilon")},
        _write_ram,
    ),
    "task_arithmetic": _vectors("task_arithmetic", None, False),
    "ties": _vectors("ties", "size", True),
    "dare_linear": _vectors("dare_linear", "chance", False, differs=_DARE),
    "dare_ties": _vectors("dare_ties", "chance", True, differs=_DARE),
    "della": _vectors("della", "rank", True, differs=_DELLA),
    "della_linear": _vectors("della_linear", "rank", False, differs=_DELLA),
    "breadcrumbs": _vectors("breadcrumbs", "middle", False, differs=_CRUMBS),
    "breadcrumbs_ties": _vectors("breadcrumbs_ties", "middle", True, differs=_CRUMBS),
}

WRITTEN_AS: Mapping[str, str] = {shared.method: name for name, shared in SHARED.items()}
"""Our methods by mergekit's names; RAM is written in its general form, ``ramplus_tl``."""

WITHOUT_MEANING = {"int8_mask", "max_iter", "tol", "eps"}
"""Parameters that change how mergekit computes, not what."""
