"""What the studies of mitigations have in common: methods and their values, the rule of choice, runs, and tables.

A study compares methods with naive fine-tuning. Each method has one hyper-parameter and a few values of it. The value
is chosen by one run each on validation items, by the rule of `choose_values`. Then all methods run with several seeds
and are evaluated on test items.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness.errors import RunError
from harness.report.arm_comparison import NOT_FINISHED
from harness.spec.arms import expand_arms

GAIN_SHARE = 0.95
"""Smallest gain of a chosen value, as a fraction of the gain of naive."""


@dataclass(frozen=True)
class Method:
    """A method of a study.

    Attributes:
        option: The hyper-parameter that is chosen, as its page calls it.
        values: The values that are tried.
        changes: The changes of the arm, dotted key of the spec -> value, with the value in place of None.
    """

    option: str
    values: tuple[float, ...]
    changes: Mapping[str, Any]

    def arm(self, value: float) -> dict[str, Any]:
        """Return the arm of a value: key of the spec -> value."""
        return {key: _filled(inner, value) for key, inner in self.changes.items()}


def _filled(changes: Any, value: float) -> Any:
    """Return the changes with the value in place of None."""
    if isinstance(changes, Mapping):
        return {key: _filled(inner, value) for key, inner in changes.items()}
    return value if changes is None else changes


def choice_arms(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Return the arms of the choice: naive, and each method with each of its values."""
    named = {f"{name}-{value:g}": method.arm(value) for name, method in methods.items() for value in method.values}
    return {"naive": {}, **named}


def choose_values(report: Mapping[str, Any], methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """Return the chosen value of each method: the one that forgets least, of those that gain enough.

    Enough is `GAIN_SHARE` of what naive gains. If no value does, it is the one that gains most. A value whose run
    failed is not chosen.

    Args:
        report: `arms.json` of the experiment with `choice_arms`.
        methods: The methods.

    Returns:
        Method -> `option`, `value`, and `tries` with `value`, `gain` and `forgotten` of each.
    """
    points = {point["arm"]: point for point in report["points"]}
    required = GAIN_SHARE * points["naive"]["gain"]["value"]
    choices = {}
    for name, method in methods.items():
        tries = []
        for value in method.values:
            point = points.get(f"{name}-{value:g}")
            if point is None:
                continue
            tries.append({"value": value, "gain": point["gain"]["value"], "forgotten": point["forgotten"]["value"]})
        enough = [each for each in tries if each["gain"] >= required]
        best = min(enough, key=lambda each: each["forgotten"]) if enough else max(tries, key=lambda each: each["gain"])
        choices[name] = {"option": method.option, "value": best["value"], "tries": tries}
    return choices


# -- runs --------------------------------------------------------------------------------------------------------------


def find_run(folder: Path, name: str) -> Path | None:
    """Return the folder of a run or experiment of a study; None if it has not started."""
    return next((path.parent for path in sorted((folder / name).glob("*/spec.json"))), None)


def missing_runs(experiment: Path | None, arms: Mapping[str, Any]) -> list[str]:
    """Return the names of the runs of an experiment that have no report yet.

    Args:
        experiment: The folder of the experiment; None if it has not started.
        arms: The spec's `arms`.
    """
    filled = {"matrix": {}, "seeds": None, "baseline": None, "joint": None, "gate": None, **arms}
    names = [arm.name for arm in expand_arms(filled, "arms")]
    return [name for name in names if experiment is None or not (experiment / "arms" / name / "report.json").is_file()]


def compares_all_arms(experiment: Path) -> bool:
    """Return whether `arms.json` was written when all arms of the experiment were finished."""
    return (experiment / "arms.json").is_file() and not harness.load_experiment(experiment).report["missing"]


def run_arms(
    folder: Path,
    spec: Mapping[str, Any] | Path,
    changes: Mapping[str, Any],
    selected: Sequence[str] | None = None,
    on: str | None = None,
) -> dict[str, Any] | None:
    """Run an experiment, or what is left of it.

    Args:
        folder: The folder of the study.
        spec: The spec, or its file.
        changes: Changes of the spec, with its `name` and `arms`; its `output` is the folder of that name.
        selected: The runs to do in this call; None for all.
        on: Where they run side by side, as for `harness.run_experiment`; None: one after the other.

    Returns:
        `arms.json`; None if runs are missing. A run that failed is not missing: it is tried once in a call, and the
        other seeds of its arm are compared.

    Raises:
        SystemExit: The experiment was begun with other arms.
    """
    experiment = find_run(folder, changes["name"])
    if experiment is not None:
        begun = json.loads((experiment / "spec.json").read_text(encoding="utf-8"))["arms"]["named"]
        if begun != changes["arms"]["named"]:
            raise SystemExit(f"{experiment}: was begun with other arms or values; delete it, or use another folder")
    missing = missing_runs(experiment, changes["arms"])
    todo = [name for name in missing if selected is None or name in selected]
    try:
        if experiment is None and todo:
            document = str(spec) if isinstance(spec, Path) else dict(spec)
            overrides = {**changes, "output": str(folder / changes["name"])}
            harness.run_experiment(document, overrides, arms=todo, on=on, quiet=True)
        elif experiment is not None and (todo or not (missing or compares_all_arms(experiment))):
            harness.resume(experiment, arms=todo, on=on, quiet=True)
    except RunError as error:
        print(error)
    experiment = find_run(folder, changes["name"])
    if experiment is None or not (experiment / "arms.json").is_file():
        return None
    report = dict(harness.load_experiment(experiment).report)
    return None if NOT_FINISHED in report["missing"].values() else report


# -- result ------------------------------------------------------------------------------------------------------------


def read_versions(experiment: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return package -> the version with which the runs of an experiment were made; several are separated by commas."""
    files = sorted(experiment.glob("arms/*/environment.json"))
    found = [json.loads(file.read_text(encoding="utf-8"))["packages"] for file in files]
    return {package: ", ".join(sorted({versions[package] for versions in found})) for package in packages}


def summarize_arms(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the numbers of each arm of `arms.json`; those of a comparison are None where there is none."""
    at_equal_gain = {point["arm"]: point for point in (report["equal_gain"] or {"points": ()})["points"]}
    against_best = {each["arm"]: each for each in report["best_control"]}
    for point in report["points"]:
        arm = point["arm"]
        equal, best = at_equal_gain.get(arm, {}), against_best.get(arm, {})
        yield {
            "arm": arm,
            "gain": bounds(point["gain"]),
            "forgotten": bounds(point["forgotten"]),
            "against_best_control": bounds(best.get("forgotten")),
            "against_best_control_verdict": best.get("verdict"),
            "forgotten_at_equal_gain": bounds(equal.get("forgotten")),
            "against_naive_at_equal_gain": bounds(equal.get("against")),
            "against_naive_at_equal_gain_verdict": equal.get("verdict"),
        }


def bounds(estimate: Mapping[str, Any] | None) -> list[float] | None:
    """Return an estimate as value, low and high, with five digits."""
    return None if estimate is None else [float(f"{estimate[key]:.5g}") for key in ("value", "low", "high")]


def format_tables(result: Mapping[str, Any]) -> str:
    """Return the tables of a page in Markdown: the choices, then the arms if they have run."""
    lines = ["| method | hyper-parameter | tried: gain, forgotten | chosen |", "| --- | --- | --- | ---: |"]
    for name, choice in result["choices"].items():
        tries = "; ".join(f"{each['value']:g}: {each['gain']:.2f}, {each['forgotten']:.2f}" for each in choice["tries"])
        tries = tries.replace("-", "−")
        lines.append(f"| {name} | `{choice['option']}` | {tries} | {choice['value']:g} |")
    if "arms" not in result:
        return "\n".join(lines) + "\n"
    header = "| arm | gain | forgotten | against the best control | at equal gain | against naive at equal gain |"
    lines += ["", header, "| --- " + "| ---: " * 5 + "|"]
    for arm in result["arms"]:
        cells = [
            format_bounds(arm["gain"]),
            format_bounds(arm["forgotten"]),
            _with_verdict(arm, "against_best_control"),
            format_bounds(arm["forgotten_at_equal_gain"]),
            _with_verdict(arm, "against_naive_at_equal_gain"),
        ]
        lines.append(f"| {arm['arm']} | {' | '.join(cells)} |")
    if result["equal_gain"] is not None:
        gain = f"{result['equal_gain']:.2f} nats, the gain of {result['limited_by']}"
        lines += ["", f"Equal gain is the largest that every run reaches: {gain}."]
    if result.get("failed"):
        lines += ["", "| failed run | reason |", "| --- | --- |"]
        lines += [f"| {name} | {reason} |" for name, reason in result["failed"].items()]
    return "\n".join(lines) + "\n"


def format_bounds(values: Sequence[float] | None, sign: str = "") -> str:
    """Return an estimate with its interval."""
    if values is None:
        return "–"
    value, low, high = (f"{number:{sign}.2f}".replace("-", "−") for number in values)
    return f"{value} [{low}, {high}]"


def _with_verdict(arm: Mapping[str, Any], key: str) -> str:
    """Return a difference with its interval and its verdict."""
    return format_bounds(arm[key], "+") + (f" {arm[f'{key}_verdict']}" if arm[key] else "")
