"""Arms of an experiment: variants of one spec, each with its own run, compared with each other.

Expands the spec's `arms` into the changes that each arm makes. Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from harness.errors import ComponentError, HarnessError, ManyErrors

FORGETTING_SIGN: Mapping[str, int] = {
    "forgetting": 1,
    "forgetting_since_learned": 1,
    "forgetting_from_best": 1,
    "relative_forgetting": 1,
    "backward_transfer": -1,
    "general_ability_delta": -1,
}
"""Summaries of the stage × suite matrix that measure forgetting -> the sign that makes forgetting positive."""

REPLACED_WHOLE = ("mode", "template", "mitigations", "sources", "evaluate", "train.optimizer", "train.scheduler")
"""Sections of a spec that an arm may replace completely, without a warning about the keys that it omits."""

MAX_ARMS = 10_000
"""Maximum number of arms; a larger matrix is taken for a mistake."""

UNSAFE_NAME_CHARACTERS = re.compile(r"[^A-Za-z0-9._=+,-]+")


@dataclass(frozen=True)
class Arm:
    """One run of an experiment: an arm with one of its seeds.

    Attributes:
        name: The run's name, also that of its folder: the arm's name, with the seed if the experiment has seeds.
        changes: Dotted key of the spec -> value. None removes a component.
        method: The arm's name, the same for all its seeds.
    """

    name: str
    changes: Mapping[str, Any]
    method: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method or self.name)

    def overrides(self) -> tuple[str, ...]:
        """Return the changes as `--set` options."""
        return format_overrides(self.changes)


def format_overrides(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return changes of a spec, dotted key -> value, as `--set` options.

    Raises:
        HarnessError: A value is not JSON.
    """
    try:
        return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items())
    except (TypeError, ValueError) as error:
        hint = "use only dicts with string keys, lists, strings, numbers, booleans and None"
        raise HarnessError("overrides", f"a value is not JSON: {error}", hint) from error


def expand_arms(arms_spec: Mapping[str, Any], where: str) -> tuple[Arm, ...]:
    """Expand `arms` into runs: each of `named` for each combination of the values of `matrix`, with each of `seeds`.

    Runs are in the order of the spec, all arms with the first seed first.

    Args:
        arms_spec: The spec's `arms`, filled in.
        where: Its location, for errors.

    Raises:
        HarnessError: There are no arms or too many, two have the same name, an arm changes a key that all arms share,
            or one change of an arm undoes another.
    """
    if not arms_spec["named"] and not arms_spec["matrix"]:
        raise HarnessError(where, "there are no arms", 'add some to "named" or "matrix", or remove "arms"')
    named: Mapping[str, Mapping[str, Any]] = arms_spec["named"] or {"": {}}
    seeds = seeds_of_arms(arms_spec)
    count = len(named) * prod(map(len, arms_spec["matrix"].values())) * max(1, len(seeds))
    if count > MAX_ARMS:
        raise HarnessError(
            where, f"there are {count:,} arms, more than {MAX_ARMS:,}", "reduce the values of its matrix"
        )
    cells = list(_matrix_combinations(arms_spec["matrix"]))
    arms = []
    for name, changes in named.items():
        for label, values in cells:
            conflicts = sorted(set(changes) & set(values))
            if conflicts:
                what = f"the arm {name!r} and the matrix both set {conflicts[0]!r}"
                raise HarnessError(where, what, "set it in one of the two")
            arms.append(Arm(",".join(part for part in (name, label) if part), {**changes, **values}))
    _validate_changes(arms, where)
    names = [arm.name for arm in arms]
    for key in ("baseline", "joint", "gate"):
        for name in baseline_names(arms_spec) if key == "baseline" else [arms_spec[key]]:
            if name is not None and name not in names:
                of_matrix = [arm for arm in names if arm.startswith(f"{name},")]
                known = f"there are: {', '.join(names)}"
                hint = f"name one arm of the matrix, e.g. {of_matrix[0]!r}" if of_matrix else known
                raise HarnessError(f"{where}.{key}", f"there is no arm {name!r}", hint)
    if arms_spec["joint"] is not None and arms_spec["joint"] in (*baseline_names(arms_spec), arms_spec["gate"]):
        what = (
            f"the joint arm {arms_spec['joint']!r} is a reference, so it is neither a baseline nor judged by the gate"
        )
        raise HarnessError(f"{where}.joint", what, "name another arm")
    if not seeds:
        return tuple(arms)
    return tuple(
        Arm(f"{arm.name},seed={seed}", {**arm.changes, "seed": seed}, arm.name) for seed in seeds for arm in arms
    )


def seeds_of_arms(arms_spec: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the seeds of every arm; () if each arm runs once, with the spec's own seed. A number n is 0 to n - 1."""
    seeds = arms_spec["seeds"]
    if seeds is None:
        return ()
    return tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)


def baseline_names(arms_spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the baseline and the other control arms; () if the spec names none."""
    baseline = arms_spec["baseline"]
    if baseline is None:
        return ()
    return (baseline,) if isinstance(baseline, str) else tuple(baseline)


def select_arms(arms: Sequence[Arm], names: Sequence[str]) -> tuple[Arm, ...]:
    """Return the runs of these names, in the order of the spec; all runs if no name is given.

    Args:
        arms: The runs.
        names: Names of arms, each for all its seeds, or of runs.

    Raises:
        HarnessError: A name is unknown.
    """
    known = list(dict.fromkeys([*(arm.method for arm in arms), *(arm.name for arm in arms)]))
    for name in names:
        if name not in known:
            raise HarnessError(f"--arm {name}", "there is no such arm", f"there are: {', '.join(known) or 'none'}")
    return tuple(arm for arm in arms if not names or arm.name in names or arm.method in names)


@contextmanager
def arm_error_context(arm: Arm) -> Iterator[None]:
    """Prefix every HarnessError in this context with the arm's name."""
    try:
        yield
    except HarnessError as error:
        cause = error.__cause__ if isinstance(error, ComponentError) else error
        raise _error_with_arm_name(arm, error) from cause


def _error_with_arm_name(arm: Arm, error: HarnessError) -> HarnessError:
    if isinstance(error, ManyErrors):
        return ManyErrors(_error_with_arm_name(arm, single) for single in error.errors)
    # An arm's changes are applied as `--set` options, which the user did not type.
    return type(error)(f"arm {arm.name!r}: {error.where.removeprefix('--set ')}", error.what, error.hint)


def override_warnings(arms: Iterable[Arm], spec_document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a warning for each arm that replaces an object of the spec, which resets its other keys to defaults.

    Args:
        arms: The arms.
        spec_document: The spec as it is in its file. Sections that are chosen as a whole, such as the mode, are exempt.
    """
    for arm in {arm.method: arm for arm in arms}.values():
        for key, value in arm.changes.items():
            old: Any = spec_document
            for step in key.split("."):
                old = old.get(step) if isinstance(old, Mapping) else None
            if key in REPLACED_WHOLE or not isinstance(old, Mapping) or not isinstance(value, Mapping) or not value:
                continue
            reset = [old_key for old_key in old if old_key not in value]
            if reset:
                yield (
                    f"the arm {arm.method!r} replaces all of {key!r}, which resets {', '.join(reset)} to the default; "
                    f"to change a single key, write {f'{key}.{next(iter(value))}'!r}"
                )


def is_summary_axis(axis: str | None) -> bool:
    """Return whether an axis is `summary:score` and not `suite/score`."""
    return axis is not None and "/" not in axis and ":" in axis


def validate_axes(arms_spec: Mapping[str, Any], suites: Iterable[str], where: str) -> Iterator[HarnessError]:
    """Yield an error for a `gain` or `forgetting` that cannot be measured.

    Args:
        arms_spec: The spec's `arms`, filled in.
        suites: The names of the spec's suites.
        where: The location of `arms`, for errors.
    """
    known = list(suites)
    for key in ("gain", "forgetting"):
        axis, location = arms_spec[key], f"{where}.{key}"
        if axis is None:
            continue
        if is_summary_axis(axis):
            summary = axis.partition(":")[0]
            if key == "gain":
                what = "a gain is a score of a suite against the base model, not a summary of the matrix"
                yield HarnessError(location, what, 'name it as "suite/score"')
            elif summary not in FORGETTING_SIGN:
                what = f"{summary!r} is not a summary of forgetting"
                yield HarnessError(location, what, f"there are: {', '.join(FORGETTING_SIGN)}")
        elif "/" not in axis:
            what = f"the score {axis!r} does not name its suite"
            yield HarnessError(location, what, 'name it as "suite/score"')
        elif axis.partition("/")[0] not in known:
            what = f"there is no suite {axis.partition('/')[0]!r}"
            yield HarnessError(location, what, f"the spec's suites are: {', '.join(known) or 'none'}")


def _matrix_combinations(matrix: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (label, key -> value) for every combination; one empty combination if there is no matrix."""
    short_names = {key: _shortest_unique_suffix(key, matrix) for key in matrix}
    for values in product(*matrix.values()):
        cell = dict(zip(matrix, values, strict=True))
        yield ",".join(f"{short_names[key]}={_format_value(value)}" for key, value in cell.items()), cell


def _shortest_unique_suffix(key: str, keys: Mapping[str, Any]) -> str:
    """Return the shortest suffix of a dotted key that no other key of the matrix has."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if not any(other != key and f".{other}".endswith(f".{end}") for other in keys):
            return end
    return key


def _format_value(value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif value is None:
        text = "none"
    else:
        text = json.dumps(value, separators=(",", ":"))
    return UNSAFE_NAME_CHARACTERS.sub("-", text).strip("-") or "empty"


def _validate_changes(arms: Sequence[Arm], where: str) -> None:
    seen: set[str] = set()
    for arm in arms:
        if arm.name in seen:
            raise HarnessError(where, f"two arms have the name {arm.name!r}", "rename one, or make the values differ")
        seen.add(arm.name)
        for key in arm.changes:
            if key.partition(".")[0] in ("arms", "name", "output", "track", "gate"):
                what = f"the arm {arm.name!r} changes {key!r}, which all arms share"
                raise HarnessError(where, what, "change the model, the data or the training instead")
            if key == "seed":
                what = f"the arm {arm.name!r} changes the seed, but runs that differ in their seed are one arm"
                raise HarnessError(where, what, 'give the seeds of all arms: "arms": {"seeds": [0, 1, 2], …}')
            if "=" in key or not all(key.split(".")):
                what = f"the arm {arm.name!r} changes {key!r}, which is not a dotted key of a spec"
                raise HarnessError(where, what, 'write e.g. "train.learning_rate"')
        _validate_change_order(arm, where)


def _validate_change_order(arm: Arm, where: str) -> None:
    """Raise HarnessError if an arm replaces a section after it changed a key within it."""
    keys = list(arm.changes)
    for number, key in enumerate(keys):
        for later in keys[number + 1 :]:
            if key.startswith(f"{later}."):
                what = f"the arm {arm.name!r} changes {key!r} and then all of {later!r}, which undoes it"
                raise HarnessError(where, what, f"include it in {later!r}, or put {later!r} first")
