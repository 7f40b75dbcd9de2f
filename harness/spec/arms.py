"""Arms of an experiment: variants of one spec, each a run of its own, compared with each other.

Knows the spec's `arms` and the changes that each arm makes to it. Knows no run; imports nothing heavy.
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

from harness.errors import HarnessError, ManyErrors, RunError

FORGETTING_SIGN: Mapping[str, int] = {
    "forgetting": 1,
    "forgetting_since_learned": 1,
    "forgetting_from_best": 1,
    "relative_forgetting": 1,
    "backward_transfer": -1,
    "general_ability_delta": -1,
}
"""Summaries of the stage × suite matrix that say how much was lost -> the sign with which a loss is positive."""

REPLACED_WHOLE = ("mode", "template", "mitigations", "sources", "evaluate")
"""Parts of a spec that an arm may give as a whole: what it leaves out is not wanted there."""

MAX_ARMS = 10_000
"""Arms of one experiment; a matrix of more is taken for a slip."""

UNSAFE_NAME_CHARACTERS = re.compile(r"[^A-Za-z0-9._=+,-]+")


@dataclass(frozen=True)
class Arm:
    """One variant. name: also that of its folder. changes: dotted key of the spec -> value; None takes a part out."""

    name: str
    changes: Mapping[str, Any]

    def overrides(self) -> tuple[str, ...]:
        """The changes as `--set` takes them."""
        return tuple(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.changes.items())


def expand_arms(arms_spec: Mapping[str, Any], where: str) -> tuple[Arm, ...]:
    """The arms of a spec: each of `named`, for each combination of the values of `matrix`, in the order of the spec.

    arms_spec: the spec's `arms`, filled in. where: its place, for errors.
    Raises HarnessError when there is none, two have one name, an arm changes what arms share, or one change of an arm
    undoes another.
    """
    if not arms_spec["named"] and not arms_spec["matrix"]:
        raise HarnessError(where, "there are no arms", 'name some in "named", give a "matrix", or leave "arms" out')
    named: Mapping[str, Mapping[str, Any]] = arms_spec["named"] or {"": {}}
    count = len(named) * prod(map(len, arms_spec["matrix"].values()))
    if count > MAX_ARMS:
        raise HarnessError(
            where, f"there are {count:,} arms, more than {MAX_ARMS:,}", "name fewer values in its matrix"
        )
    cells = list(_matrix_combinations(arms_spec["matrix"]))
    made = []
    for name, changes in named.items():
        for label, values in cells:
            clash = sorted(set(changes) & set(values))
            if clash:
                what = f"the arm {name!r} and the matrix both set {clash[0]!r}"
                raise HarnessError(where, what, "say it in one of the two")
            made.append(Arm(",".join(part for part in (name, label) if part), {**changes, **values}))
    _validate_changes(made, where)
    names = [arm.name for arm in made]
    for key in ("baseline", "joint"):
        name = arms_spec[key]
        if name is not None and name not in names:
            raise HarnessError(f"{where}.{key}", f"there is no arm {name!r}", f"there are: {', '.join(names)}")
    return tuple(made)


def select_arms(arms: Sequence[Arm], names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of these names, in the order of the spec; all of them when none is named. Raises HarnessError."""
    known = [arm.name for arm in arms]
    for name in names:
        if name not in known:
            raise HarnessError(f"--arm {name}", "there is no such arm", f"there are: {', '.join(known) or 'none'}")
    return tuple(arm for arm in arms if not names or arm.name in names)


@contextmanager
def arm_error_context(arm: Arm) -> Iterator[None]:
    """Whatever is wrong in here is said of this arm: each HarnessError names it at its beginning."""
    try:
        yield
    except HarnessError as error:
        raise _error_with_arm_name(arm, error) from error


def _error_with_arm_name(arm: Arm, error: HarnessError) -> HarnessError:
    if isinstance(error, ManyErrors):
        return ManyErrors(_error_with_arm_name(arm, one) for one in error.errors)
    kind = RunError if isinstance(error, RunError) else HarnessError
    # An arm's changes go the way of `--set`, which nobody has typed here.
    return kind(f"arm {arm.name!r}: {error.where.removeprefix('--set ')}", error.what, error.hint)


def override_warnings(arms: Iterable[Arm], spec_document: Mapping[str, Any]) -> Iterator[str]:
    """A line for each arm that puts a new object in the place of one of the spec, whose other keys are lost by that.

    spec_document: the spec as it stands in its file. Parts that are chosen anew as a whole, such as the mode, are none.
    """
    for arm in arms:
        for key, value in arm.changes.items():
            old: Any = spec_document
            for step in key.split("."):
                old = old.get(step) if isinstance(old, Mapping) else None
            if key in REPLACED_WHOLE or not isinstance(old, Mapping) or not isinstance(value, Mapping) or not value:
                continue
            lost = [one for one in old if one not in value]
            if lost:
                yield (
                    f"the arm {arm.name!r} replaces all of {key!r}, so that the defaults hold of {', '.join(lost)}; "
                    f"to change one key alone write {f'{key}.{next(iter(value))}'!r}"
                )


def default_axes(
    scores_by_role: Mapping[str, Sequence[str]], gain: str | None, forgetting: str | None
) -> tuple[str, str] | None:
    """What arms are compared by: the gain, and what is forgotten; None where neither is named nor can be chosen.

    scores_by_role: the scores `suite/score` of the baseline that are better one way, under `domain` and `general`.
    gain, forgetting: as the spec names them. One that it does not name is the first of its role; of the general ones
    the first of the gain's name, if there is one.
    """
    if (gain is None and not scores_by_role["domain"]) or (forgetting is None and not scores_by_role["general"]):
        return None
    gain = gain or scores_by_role["domain"][0]
    same = [one for one in scores_by_role["general"] if one.partition("/")[2] == gain.partition("/")[2]]
    return gain, forgetting or (same or scores_by_role["general"])[0]


def is_summary_axis(axis: str | None) -> bool:
    """Whether an axis of the comparison is `summary:score` and not `suite/score`."""
    return axis is not None and "/" not in axis and ":" in axis


def validate_axes(arms_spec: Mapping[str, Any], suites: Iterable[str], where: str) -> Iterator[HarnessError]:
    """What is wrong with `gain` and `forgetting` before anything has been measured. suites: the spec's, by name."""
    known = list(suites)
    for key in ("gain", "forgetting"):
        axis, place = arms_spec[key], f"{where}.{key}"
        if axis is None:
            continue
        if is_summary_axis(axis):
            summary = axis.partition(":")[0]
            if key == "gain":
                what = "a gain is a score of a suite against the base model, and no summary of the matrix is one"
                yield HarnessError(place, what, 'name it as "suite/score"')
            elif summary not in FORGETTING_SIGN:
                what = f"{summary!r} is no summary that says what was lost"
                yield HarnessError(place, what, f"there are: {', '.join(FORGETTING_SIGN)}")
        elif "/" not in axis:
            what = f"{axis!r} does not say of which suite it is a score"
            yield HarnessError(place, what, 'name it as "suite/score"')
        elif axis.partition("/")[0] not in known:
            what = f"there is no suite {axis.partition('/')[0]!r}"
            yield HarnessError(place, what, f"the spec's suites are: {', '.join(known) or 'none'}")


def _matrix_combinations(matrix: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, key -> value) of every combination; one empty combination where there is no matrix."""
    short = {key: _shortest_unique_suffix(key, matrix) for key in matrix}
    for values in product(*matrix.values()):
        cell = dict(zip(matrix, values, strict=True))
        yield ",".join(f"{short[key]}={_format_value(value)}" for key, value in cell.items()), cell


def _shortest_unique_suffix(key: str, keys: Mapping[str, Any]) -> str:
    """The shortest end of a dotted key that no other key of the matrix has."""
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
            raise HarnessError(where, f"two arms are called {arm.name!r}", "rename one, or make the values differ")
        seen.add(arm.name)
        for key in arm.changes:
            if key.partition(".")[0] in ("arms", "name", "output", "track", "gate"):
                what = f"the arm {arm.name!r} changes {key!r}, which all arms share"
                raise HarnessError(where, what, "change what is trained, on what, or how")
            if "=" in key or not all(key.split(".")):
                what = f"the arm {arm.name!r} changes {key!r}, which is no dotted key of a spec"
                raise HarnessError(where, what, 'write e.g. "train.learning_rate"')
        _validate_change_order(arm, where)


def _validate_change_order(arm: Arm, where: str) -> None:
    """Raise HarnessError where a whole part comes after a change within it, which would be lost."""
    keys = list(arm.changes)
    for number, key in enumerate(keys):
        for later in keys[number + 1 :]:
            if key.startswith(f"{later}."):
                what = f"the arm {arm.name!r} changes {key!r} and then all of {later!r}, which undoes it"
                raise HarnessError(where, what, f"say it within {later!r}, or put {later!r} first")
