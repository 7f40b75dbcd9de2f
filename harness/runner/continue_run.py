"""A run that starts from the result of an earlier run: what happens to its adapter, and which scores are carried over.

`staged_model` uses the adapter, `evaluate_stages` the scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import predictions
from harness.model import added_tokens, frozen_lora, locate, save
from harness.report import finished_run
from harness.report.finished_run import PreviousRun
from harness.runner.prepare import PreparedRun
from harness.spec.spec import Spec
from harness.types import Evaluation, Item, Progress, Score
from harness.utils.find_run import RUN_SCHEME, find_run

SCORE_TOLERANCE = 1e-3
"""Largest relative difference between a score at the start and at the end of the earlier run. Other hardware and batch
sizes round differently."""

MATCHING_ADAPTER_FIELDS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")
"""Settings in which two adapters of one shape must agree to compute the same."""


# -- the model --------------------------------------------------------------------------------------------------------


def adapter_policy(spec: Spec, prepared: PreparedRun) -> str | None:
    """Return what happens to the adapter of the earlier run in the first stage.

    Returns:
        `continue`, `merge` or `new`, as the first stage of the mode `continual` states; `merge` in other modes. None if
        the run does not start from an earlier run.
    """
    if prepared.location.kind != "run":
        return None
    return prepared.plan.stages[0].adapter if "continual" in spec.document["mode"] else "merge"


def original_base(spec: Spec, prepared: PreparedRun, progress: Progress) -> locate.ModelLocation:
    """Locate the model that the first of all earlier runs started from; without earlier runs, the run's own.

    It gets the tokens that this run and the earlier ones add, so that all models have the same tokens.

    Raises:
        HarnessError: If that model or an earlier run does not exist any more.
    """
    location, settings = prepared.location, prepared.plan.model
    while location.kind == "run":
        earlier = finished_run.load_run_json(Path(location.path).parent, "spec.json")["model"]
        settings = {**settings, **earlier, **added_tokens.joined_settings(earlier, settings)}
        location = locate.resolve_model(settings, output=spec.document["output"], progress=progress)
    return location


class EarlierAdapter:
    """The adapter that an earlier run trained.

    Attributes:
        config: The settings `MATCHING_ADAPTER_FIELDS`.
        weights: Copies of its weights, by name.
    """

    def __init__(self, loaded_model: Any) -> None:
        """Copy the adapter. loaded_model: the model as loaded, with the adapter."""
        self.config = _adapter_config(loaded_model)
        self.weights = {
            name: weight.detach().clone() for name, weight in loaded_model.named_parameters() if weight.requires_grad
        }

    def copy_into(self, model: Any, stage: str) -> None:
        """Copy the weights into the adapter that the mitigations of a stage have added.

        Args:
            model: The model with the new adapter.
            stage: Name of the stage, for the error.

        Raises:
            HarnessError: If the new adapter has another shape, scale or type, or there is none.
        """
        import torch

        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        difference = _config_difference(self.config, _adapter_config(model) if save.is_peft_model(model) else None)
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        if difference is None and shapes != {name: tuple(weight.shape) for name, weight in weights.items()}:
            difference = "its layers or shapes differ"
        if difference is not None:
            what = f"the stage {stage!r} cannot continue the adapter of the earlier run: {difference}"
            raise HarnessError("model.path", what, _ALTERNATIVE_HINT)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(self.weights[name])

    def require_unchanged(self, model: Any, stage: str) -> None:
        """Raise HarnessError if a mitigation changed the weights of the adapter at the start of its stage."""
        import torch

        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        is_same = weights.keys() == self.weights.keys() and all(
            torch.equal(weight, self.weights[name].to(weight)) for name, weight in weights.items()
        )
        if not is_same or frozen_lora.frozen_lora(model):
            what = (
                f"the stage {stage!r} cannot continue the adapter of the earlier run: a mitigation resets its weights"
            )
            raise HarnessError("model.path", what, f"""set lora's start to "zero"; {_ALTERNATIVE_HINT}""")


_ALTERNATIVE_HINT = 'give the mitigation the options of the earlier run, or the stage "adapter": "merge"'


def _adapter_config(loaded_model: Any) -> dict[str, Any]:
    config = next(iter(loaded_model.peft_config.values()))
    settings = {name: getattr(config, name, None) for name in MATCHING_ADAPTER_FIELDS}
    return {**settings, "peft_type": str(getattr(settings["peft_type"], "value", settings["peft_type"]))}


def _config_difference(previous: Mapping[str, Any], current: Mapping[str, Any] | None) -> str | None:
    if current is None:
        return "no mitigation of this spec adds an adapter"
    name = next((name for name in MATCHING_ADAPTER_FIELDS if previous[name] != current[name]), None)
    return None if name is None else f"its {name} is {previous[name]}, but {current[name]} in this spec"


# -- the scores -------------------------------------------------------------------------------------------------------


def carry_over_scores(
    folder: Path, start_evaluations: Sequence[Evaluation], output: str
) -> tuple[PreviousRun | None, tuple[str, ...]]:
    """Load the scores of the earlier run, for the suites that both runs measure in the same way.

    A suite is carried over if its items and the signatures of its metrics are equal.

    Args:
        folder: The folder of the earlier run.
        start_evaluations: Evaluations of this run before its first step.
        output: The spec's `output`, where earlier runs are searched.

    Returns:
        The scores, or None if no suite is carried over; and warnings.

    Raises:
        HarnessError: If the folder is damaged.
    """
    previous_run = finished_run.load_finished_run(folder)
    report = finished_run.load_run_json(folder, "report.json")
    current = {evaluation.suite: evaluation for evaluation in start_evaluations}
    warnings: list[str] = []
    carried: list[str] = []
    for previous in previous_run.evaluations[-1]:
        if previous.suite not in current:
            warnings.append(f"the earlier run's suite {previous.suite!r} is not measured in this run")
            continue
        difference = _suite_difference(previous, current[previous.suite])
        if difference is None:
            carried.append(previous.suite)
            warnings += _score_mismatch_warnings(folder.name, previous, current[previous.suite])
        else:
            warnings.append(f"the suite {previous.suite!r} starts with this run: {difference}")
    previous_suites = {previous.suite for previous in previous_run.evaluations[-1]}
    warnings += [
        f"the suite {suite!r} starts with this run: the earlier run does not have it"
        for suite in current
        if suite not in previous_suites
    ]
    if not carried:
        return None, (*warnings, "no suite of the earlier run's matrix is carried over")
    items = _load_original_items(folder, carried, output)
    evaluations = tuple(
        tuple(
            _with_common_scores(evaluation, current[evaluation.suite], items if stage_index == 0 else {})
            for evaluation in stage_evaluations
            if evaluation.suite in carried
        )
        for stage_index, stage_evaluations in enumerate(previous_run.evaluations)
    )
    learned = _stage_learned(folder, report, carried)
    return PreviousRun(str(folder), previous_run.stages[1:], evaluations, learned), tuple(warnings)


def _suite_difference(previous: Evaluation, current: Evaluation) -> str | None:
    if [item.id for item in previous.items] != [item.id for item in current.items]:
        return "its items differ from those of the earlier run"
    signatures = {(score.metric, score.name): score.signature for score in previous.scores}
    for score in current.scores:
        signature = signatures.get((score.metric, score.name), score.signature)
        if signature != score.signature:
            return f"{score.name} is measured differently ({signature}; now {score.signature})"
    if not any((score.metric, score.name) in signatures for score in current.scores):
        return "it has none of the earlier run's scores"
    return None


def _score_mismatch_warnings(run: str, previous: Evaluation, current: Evaluation) -> Iterator[str]:
    values = {(score.metric, score.name): score.value for score in current.scores}
    for score in previous.scores:
        value = values.get((score.metric, score.name), score.value)
        if not (math.isclose(value, score.value, rel_tol=SCORE_TOLERANCE, abs_tol=1e-6) or math.isnan(value)):
            yield (
                f"{previous.suite}/{score.name} is {value:.6g} at the start, "
                f"but was {score.value:.6g} at the end of {run}: "
                "the two runs measure differently (precision, device, or the model's files)"
            )


def _with_common_scores(
    previous: Evaluation, current: Evaluation, items: Mapping[str, Mapping[str, Item]]
) -> Evaluation:
    """Return the earlier evaluation with the scores that both runs have, in this run's order.

    Args:
        previous: Evaluation of the earlier run.
        current: Evaluation of the same suite in this run.
        items: Suite -> id -> item with texts, to replace items without texts.
    """
    scores_by_key: dict[tuple[str, str], Score] = {(score.metric, score.name): score for score in previous.scores}
    keys = [(score.metric, score.name) for score in current.scores]
    scores = tuple(scores_by_key[key] for key in keys if key in scores_by_key)
    suite_items = items.get(previous.suite, {})
    return replace(previous, items=tuple(suite_items.get(item.id, item) for item in previous.items), scores=scores)


def _load_original_items(folder: Path, suites: Sequence[str], output: str) -> dict[str, dict[str, Item]]:
    """Load the first base model's answers, from the folder of the first of all earlier runs.

    They are only shown as examples, so a run that does not exist any more is not an error.

    Returns:
        Suite -> id -> item.
    """
    try:
        while str(path := finished_run.load_run_json(folder, "spec.json")["model"]["path"]).startswith(RUN_SCHEME):
            folder = find_run(path.removeprefix(RUN_SCHEME), output)
        files = {suite: folder / "predictions" / f"{suite}-stage0.jsonl" for suite in suites}
        return {
            suite: {item.id: item for item in predictions.load_items(file)}
            for suite, file in files.items()
            if file.is_file()
        }
    except HarnessError:
        return {}


def _stage_learned(folder: Path, report: Mapping[str, Any], carried: Sequence[str]) -> dict[str, int]:
    """Return suite -> index of the stage that taught it, from the earlier run's report."""
    try:
        return {
            str(suite): int(stage_index)
            for matrix in report["forgetting"]
            for suite, stage_index in zip(matrix["suites"], matrix["learned"], strict=True)
            if stage_index is not None and suite in carried
        }
    except (KeyError, TypeError, ValueError) as error:
        what = f"is not a report of a run ({type(error).__name__}: {error})"
        raise HarnessError(str(folder / "report.json"), what, "run the earlier run again") from error
