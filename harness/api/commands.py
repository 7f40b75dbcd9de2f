"""The commands as functions: `harness.run`, `run_experiment`, `resume`, `evaluate` and `compare`.

Everything heavy is imported within the functions, so that `import harness` stays light.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.results import ComparisonResult, EvaluationResult, ExperimentResult, RunResult, load_experiment
from harness.errors import HarnessError
from harness.spec.yaml_locations import SPEC_SUFFIXES

if TYPE_CHECKING:
    from harness.registry import Registry
    from harness.terminal.console import Console

SpecSource = str | os.PathLike[str] | Mapping[str, Any]
"""A spec: the path of its file, or its JSON object. Paths in an object are relative to the working directory."""

Overrides = Mapping[str, Any] | Sequence[str] | None
"""Changes of a spec: `{"train.epochs": 2}` or `["train.epochs=2"]`. A value replaces what is at its key, as `--set`."""


def run(spec: SpecSource, overrides: Overrides = None, *, quiet: bool = False) -> RunResult:
    """Train, evaluate before and after each stage, and return the results.

    Progress is printed; in a Jupyter notebook with ipywidgets it is shown as bars.

    Args:
        spec: The path of a spec, or its JSON object as a dict.
        overrides: Changes of the spec, e.g. `{"train.learning_rate": 1e-5}`.
        quiet: Whether only warnings are printed.

    Returns:
        The results. A gate that fails raises nothing: see `RunResult.passed`.

    Raises:
        HarnessError: The input is invalid, or the spec has arms.
        RunError: The run failed. Its folder can be resumed with `resume`.
    """
    from harness.cli import planned_spec

    arguments = _arguments(spec, overrides)
    loaded, registry, _ = planned_spec.load_spec_and_plan(arguments)
    if loaded.document["arms"] is not None:
        raise HarnessError(loaded.where(("arms",)), "the spec has arms", "call harness.run_experiment(spec) instead")
    from harness.runner import api

    with _console(registry, quiet=quiet):
        report = api.run(loaded, registry)
    return RunResult(report.run_info["folder"])


def run_experiment(
    spec: SpecSource,
    overrides: Overrides = None,
    *,
    arms: Sequence[str] = (),
    quiet: bool = False,
    on: str | None = None,
) -> ExperimentResult:
    """Run the arms of a spec and compare them.

    Args:
        spec: The path of a spec with arms, or its JSON object.
        overrides: Changes of the spec.
        arms: Names of the arms to run; empty for all.
        quiet: Whether only warnings are printed.
        on: Where the arms run side by side, as `--on` of `harness run`, e.g. `ray`; None: one after the other, here.

    Raises:
        HarnessError: The input is invalid, the spec has no arms, or the cluster cannot be reached.
        RunError: An arm failed. The experiment can be resumed with `resume`.
    """
    from harness.cli import planned_spec

    _require_cluster(on)
    arguments = _arguments(spec, overrides)
    loaded, registry, _ = planned_spec.load_spec_and_plan(arguments)
    if loaded.document["arms"] is None:
        raise HarnessError(loaded.where(()), "the spec has no arms", "call harness.run(spec) instead")
    planned_spec.validate_arms(arguments, loaded, registry, arms)
    from harness.runner import api

    with _console(registry, quiet=quiet):
        load = planned_spec.arm_spec_loader(arguments, registry)
        comparison = api.run_experiment(loaded, registry, load, arm_names=arms, on=on)
    return load_experiment(comparison.folder)


def resume(
    path: str | os.PathLike[str],
    *,
    arms: Sequence[str] = (),
    quiet: bool = False,
    allow_plugin_change: bool = False,
    on: str | None = None,
) -> RunResult | ExperimentResult:
    """Resume an interrupted run or experiment; it uses its stored spec.

    Args:
        path: The folder of the run, or its name in `runs`.
        arms: Names of the arms of an experiment to run; empty for all that have no result.
        quiet: Whether only warnings are printed.
        allow_plugin_change: Whether a plugin may have changed since the run was started; the result may then differ.
        on: Where the arms of an experiment run side by side, as for `run_experiment`.

    Raises:
        HarnessError: There is no such run or arm, it is finished, or its inputs or plugins changed.
        RunError: The run failed again.
    """
    from harness.cli import planned_spec
    from harness.utils.find_run import find_run
    from harness.utils.formats import require_run_format

    _require_cluster(on)
    folder = find_run(Path(path))
    require_run_format(folder)
    arguments = _arguments(folder / "spec.json", None)
    loaded, registry, _ = planned_spec.load_spec_and_plan(arguments)
    has_arms = loaded.document["arms"] is not None
    if has_arms:
        planned_spec.validate_arms(arguments, loaded, registry, arms)
    elif arms:
        raise HarnessError(f"arms={list(arms)}", "the run has no arms", "leave them out")
    elif on is not None:
        raise HarnessError(f"on={on!r}", "the run has no arms", "leave it out")
    from harness.runner import api
    from harness.runner.folder import RunFolder
    from harness.runner.resume import require_same_plugins

    if not allow_plugin_change:
        require_same_plugins(RunFolder(folder), registry)
    with _console(registry, quiet=quiet):
        if has_arms:
            load = planned_spec.arm_spec_loader(arguments, registry)
            api.run_experiment(loaded, registry, load, arm_names=arms, path=folder, on=on)
        else:
            api.resume_run(loaded, registry, folder)
    return load_experiment(folder) if has_arms else RunResult(folder)


def evaluate(model: SpecSource | RunResult, overrides: Overrides = None, *, quiet: bool = False) -> EvaluationResult:
    """Evaluate the model of a finished run, or the base model of a spec. Trains nothing.

    Args:
        model: A spec (path or dict), or a run (its result, its folder, or its name in `runs`).
        overrides: Changes of the spec, e.g. another suite.
        quiet: Whether only warnings are printed.

    Raises:
        HarnessError: The input is invalid, or the run has no model.
        RunError: The evaluation failed, or a suite violates its limits.
    """
    from harness.cli import planned_spec
    from harness.utils.find_run import find_run

    source: Any = model.folder if isinstance(model, RunResult) else model
    folder = None
    if not isinstance(source, Mapping) and not (Path(source).is_file() or str(source).endswith(SPEC_SUFFIXES)):
        folder = find_run(Path(source))
        source = folder / "spec.json"
    loaded, registry, _ = planned_spec.load_spec_and_plan(_arguments(source, overrides), trains=False)
    from harness.runner import evaluate_model

    with _console(registry, quiet=quiet):
        scores_file, evaluations = evaluate_model.evaluate_model(loaded, registry, folder)
    roles = {name: suite["role"] for name, suite in loaded.document["evaluate"].items()}
    return EvaluationResult(scores_file, evaluations, roles)


def evaluate_tuned(
    spec: SpecSource, tuned: str | os.PathLike[str], overrides: Overrides = None, *, quiet: bool = False
) -> RunResult:
    """Compare the base model of a spec with a model that was tuned elsewhere. Trains nothing.

    Args:
        spec: The path of a spec, or its JSON object. Its model is the base model.
        tuned: The tuned model: a folder (full model or adapter), or a hub id.
        overrides: Changes of the spec.
        quiet: Whether only warnings are printed.

    Raises:
        HarnessError: The input is invalid, or the spec has arms.
        RunError: The evaluation failed, or a suite violates its limits.
    """
    from harness.cli import planned_spec

    loaded, registry, _ = planned_spec.load_spec_and_plan(_arguments(spec, overrides))
    if loaded.document["arms"] is not None:
        raise HarnessError(loaded.where(("arms",)), "the spec has arms", 'remove them: {"arms": None} as an override')
    from harness.runner.evaluate_tuned import evaluate_tuned as run_evaluation

    with _console(registry, quiet=quiet):
        report = run_evaluation(loaded, registry, os.fspath(tuned))
    return RunResult(report.run_info["folder"])


def compare(
    *runs: str | os.PathLike[str] | RunResult,
    baseline: str | os.PathLike[str] | RunResult | None = None,
    score: str | None = None,
    items: int | None = None,
    experiment: str | None = None,
    uri: str | None = None,
) -> ComparisonResult:
    """Compare runs with a baseline, item by item.

    Args:
        *runs: Runs: their results, folders, MLflow ids or names. An experiment means all its arms.
        baseline: The run that the others are compared with; None: the first one.
        score: The score whose most changed items are listed, as `suite/score`.
        items: How many changed items are listed for each run; None: 10. Runs of several seeds are compared without.
        experiment: Name of an MLflow experiment: its runs, oldest first.
        uri: MLflow tracking URI; None: $MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.

    Raises:
        HarnessError: A run or the score does not exist, or the tracking store cannot be read.
    """
    from harness.comparison.compare import compare_runs

    names = [_run_name(entry) for entry in runs]
    baseline_name = None if baseline is None else _run_name(baseline)
    return ComparisonResult(compare_runs(names, experiment, uri, baseline=baseline_name, score=score, items=items))


def _require_cluster(on: str | None) -> None:
    """Raise HarnessError if `on` is invalid or Ray is not installed, before the spec is loaded."""
    if on is not None:
        from harness.runner.ray_cluster import require_ray

        require_ray(on)


def _run_name(entry: str | os.PathLike[str] | RunResult) -> str:
    return str(entry.folder) if isinstance(entry, RunResult) else os.fspath(entry)


def _arguments(spec: SpecSource, overrides: Overrides) -> argparse.Namespace:
    """Return the arguments that a command would have."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        hint = "start it without a launcher, or use the command: harness run SPEC --gpus N"
        raise HarnessError("torchrun", "the Python interface runs in one process", hint)
    if isinstance(overrides, Mapping):
        from harness.spec.arms import format_overrides

        overrides = format_overrides(overrides)
    elif isinstance(overrides, str):
        overrides = [overrides]
    return argparse.Namespace(
        spec=spec if isinstance(spec, Mapping) else os.fspath(spec), overrides=list(overrides or ())
    )


def _console(registry: Registry, *, quiet: bool) -> Console:
    from harness.terminal.console import Console

    console = Console.from_options(quiet=quiet)
    registry.manager.register(console, name="console")
    return console
