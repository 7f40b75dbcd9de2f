"""Evaluate a model that was tuned elsewhere: base and tuned model on a spec's suites, with the report of a run.

The run has one stage, `tuned`, which is loaded instead of trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import scoring
from harness.events import WarningRaised
from harness.model import load, locate
from harness.registry import Registry
from harness.report.run_report import Report
from harness.runner.context import RunContext
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun, create_progress, prepare_checked_run
from harness.runner.run_stages import MainProcess
from harness.runner.trackers import mlflow_settings, tracker_listeners
from harness.runner.tracking_session import tracking_session
from harness.spec.spec import Spec
from harness.types import Plan, Progress
from harness.utils import file_digests

STAGE_NAME = "tuned"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is evaluated as it was loaded.

    Attributes:
        model: The model.
        merged: True: the base model cannot be had by disabling an adapter.
    """

    model: Any
    merged: bool = True


def evaluate_tuned(spec: Spec, registry: Registry, tuned: str) -> Report:
    """Evaluate the spec's base model and a tuned model, and write the report, the page and the MLflow run.

    Args:
        spec: The spec, without arms. Its mode and mitigations are not used.
        registry: The components and listeners.
        tuned: The tuned model: a folder with a full model or an adapter, or whatever `model.path` accepts.

    Raises:
        HarnessError: If the spec or the tuned model is invalid; no folder is created.
        RunError: If an evaluation fails.
    """
    prepared = _with_one_stage(prepare_checked_run(spec, registry))
    location = locate_tuned_model(tuned, prepared, spec, create_progress(registry))
    folder = RunFolder.create(spec.document["output"], spec.document["name"])
    context = RunContext(spec, registry, prepared, folder)
    _warn_of_other_tokenizer(location, context)
    track = spec.document["track"]
    with (
        folder.locked(),
        tracker_listeners(track, registry),
        tracking_session(mlflow_settings(track, registry), prepared.plan.name, registry, folder) as tracker,
    ):
        folder.write_json("tuned.json", {"path": tuned, "digest": location.digest})
        process = MainProcess(context, tracker)
        process.write_inputs()
        process.evaluator.evaluate_stage(LoadedModel(context.load_model()), 0)
        process.evaluator.evaluate_stage(LoadedModel(context.load_model(location)), 1)
        report = process.write_report()
        scoring.raise_on_violations(process.evaluator.evaluations[1], first_stage=1)
        return report


def locate_tuned_model(tuned: str, prepared: PreparedRun, spec: Spec, progress: Progress) -> locate.ModelLocation:
    """Find the tuned model.

    Args:
        tuned: See `evaluate_tuned`. An adapter in a folder is put on the spec's base model.
        prepared: The prepared run.
        spec: The spec.
        progress: Called while files are hashed or downloaded.

    Raises:
        HarnessError: There is no such model.
    """
    folder = Path(tuned).expanduser()
    if (folder / "adapter_config.json").is_file():
        base = prepared.location
        digest = file_digests.digest_adapter(folder, base.digest)
        return locate.ModelLocation("folder", str(folder.resolve()), None, digest, base=base)
    settings = {**prepared.plan.model, "path": tuned, "revision": None}
    try:
        return locate.resolve_model(settings, output=spec.document["output"], progress=progress)
    except HarnessError as error:
        raise HarnessError(f"--tuned {tuned}", error.what, error.hint) from error


def _with_one_stage(prepared: PreparedRun) -> PreparedRun:
    """Return the prepared run with the stage `tuned`, which trains nothing, in place of its stages."""
    return replace(prepared, plan=plan_of_tuned(prepared.plan), data=replace(prepared.data, stages=()))


def plan_of_tuned(plan: Plan) -> Plan:
    """Return the plan with the stage `tuned` in place of its stages."""
    return replace(plan, stages=(replace(plan.stages[-1], name=STAGE_NAME, shares=(), mitigations={}),))


def _warn_of_other_tokenizer(location: locate.ModelLocation, context: RunContext) -> None:
    """Warn if the tuned model comes with another vocabulary: both models get the tokens of the base model."""
    try:
        tokenizer = load.load_tokenizer(location, context.plan.model)
    except HarnessError:
        return  # an adapter or a model without a tokenizer of its own
    if tokenizer.get_vocab() != context.prepared.tokenizer.get_vocab():
        text = (
            "the tuned model has another vocabulary than the spec's model; both are evaluated with the tokens of "
            "the spec's model. If the tuned model has added tokens, name it as model.path too"
        )
        context.registry.emit(WarningRaised(text=text))
