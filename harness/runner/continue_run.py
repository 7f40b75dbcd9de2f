"""Going on from the result of an earlier run: its adapter trained on, and its measurements put before the new ones.

Knows the folder of a finished run and the model that was loaded from it. `staged_model` asks for the adapter,
`main_process` for the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import predictions
from harness.model import frozen_lora, locate, save
from harness.report import finished_run
from harness.report.finished_run import PreviousRun
from harness.runner.prepare import PreparedRun
from harness.spec.spec import Spec
from harness.types import Evaluation, Item, Progress, Score
from harness.utils.find_run import RUN_SCHEME, find_run

SCORE_TOLERANCE = 1e-3
"""By how much, relatively, a score at the start may differ from what the earlier run's last stage had: other hardware
and batch sizes round otherwise."""

MATCHING_ADAPTER_FIELDS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")
"""What two adapters of one shape must have in common beside it to compute the same."""


# -- the model --------------------------------------------------------------------------------------------------------


def adapter_policy(spec: Spec, prepared: PreparedRun) -> str | None:
    """What becomes of the earlier run's adapter: `continue`, `merge` or `new`; None: no run is gone on with.

    Only the mode `continual` asks for it, in its first stage; in the others it is merged, so that what is trained
    beside or on top of it is free.
    """
    if prepared.location.kind != "run":
        return None
    return prepared.plan.stages[0].adapter if "continual" in spec.document["mode"] else "merge"


def original_base(spec: Spec, prepared: PreparedRun, progress: Progress) -> locate.ModelLocation:
    """The model that the first of all earlier runs began with; the run's own when it goes on from none.

    Raises HarnessError when it, or a run on the way, is no longer there.
    """
    location, settings = prepared.location, prepared.plan.model
    while location.kind == "run":
        settings = {**settings, **finished_run.load_run_json(Path(location.path).parent, "spec.json")["model"]}
        location = locate.resolve_model(settings, output=spec.document["output"], progress=progress)
    return location


class EarlierAdapter:
    """The weights and the shape of the adapter that an earlier run trained."""

    def __init__(self, loaded_model: Any) -> None:
        """loaded_model: as loaded, within the adapter."""
        self.config = _adapter_config(loaded_model)
        self.weights = {n: one.detach().clone() for n, one in loaded_model.named_parameters() if one.requires_grad}

    def copy_into(self, loaded_model: Any, stage: str) -> None:
        """Make the adapter that a stage's mitigations put on the model the earlier one.

        Raises HarnessError when it has another shape, scale or kind, or there is none.
        """
        import torch

        there = {name: one for name, one in loaded_model.named_parameters() if one.requires_grad}
        differs = _config_difference(
            self.config, _adapter_config(loaded_model) if save.is_peft_model(loaded_model) else None
        )
        shapes = {name: tuple(one.shape) for name, one in self.weights.items()}
        if differs is None and shapes != {name: tuple(one.shape) for name, one in there.items()}:
            differs = "it is on other layers, or of another shape"
        if differs is not None:
            what = f"the stage {stage!r} is to go on with the adapter of the earlier run, and {differs}"
            raise HarnessError("model.path", what, _ALTERNATIVE_HINT)
        with torch.no_grad():
            for name, one in there.items():
                one.copy_(self.weights[name])

    def require_unchanged(self, loaded_model: Any, stage: str) -> None:
        """Raise HarnessError when a mitigation gave the adapter other weights as its stage began."""
        import torch

        there = {name: one for name, one in loaded_model.named_parameters() if one.requires_grad}
        same = there.keys() == self.weights.keys() and all(
            torch.equal(one, self.weights[name].to(one)) for name, one in there.items()
        )
        if not same or frozen_lora.frozen_lora(loaded_model):
            what = (
                f"the stage {stage!r} is to go on with the adapter of the earlier run, and a mitigation begins it anew"
            )
            raise HarnessError("model.path", what, f"""set lora's start to "zero"; {_ALTERNATIVE_HINT}""")


_ALTERNATIVE_HINT = 'give the mitigation the options of the earlier run, or the stage "adapter": "merge"'


def _adapter_config(loaded_model: Any) -> dict[str, Any]:
    config = next(iter(loaded_model.peft_config.values()))
    found = {name: getattr(config, name, None) for name in MATCHING_ADAPTER_FIELDS}
    return {**found, "peft_type": str(getattr(found["peft_type"], "value", found["peft_type"]))}


def _config_difference(previous: Mapping[str, Any], current: Mapping[str, Any] | None) -> str | None:
    if current is None:
        return "no mitigation of this spec trains one"
    name = next((name for name in MATCHING_ADAPTER_FIELDS if previous[name] != current[name]), None)
    return None if name is None else f"its {name} is {previous[name]}, that of this spec is {current[name]}"


# -- the measurements -------------------------------------------------------------------------------------------------


def carry_over_scores(
    folder: Path, start_evaluations: Sequence[Evaluation], output: str
) -> tuple[PreviousRun | None, tuple[str, ...]]:
    """What the run in `folder` measured, as far as this run measures the same; and what a person should know of it.

    start_evaluations: this run's evaluations before its first update. A suite is carried on when its items and the
    signatures of its metrics are the same. None: there is no such suite. Raises HarnessError when the folder is
    damaged.
    """
    before = finished_run.load_finished_run(folder)
    told = finished_run.load_run_json(folder, "report.json")
    own = {one.suite: one for one in start_evaluations}
    warnings: list[str] = []
    carried: list[str] = []
    for one in before.evaluations[-1]:
        if one.suite not in own:
            warnings.append(f"the earlier run's suite {one.suite!r} is not measured any more")
            continue
        reason = _suite_difference(one, own[one.suite])
        if reason is None:
            carried.append(one.suite)
            warnings += _score_mismatch_warnings(folder.name, one, own[one.suite])
        else:
            warnings.append(f"the suite {one.suite!r} starts at this run: {reason}")
    known = {one.suite for one in before.evaluations[-1]}
    warnings += [
        f"the suite {suite!r} starts at this run: the earlier one has none" for suite in own if suite not in known
    ]
    if not carried:
        return None, (*warnings, "nothing of the earlier run's matrix is carried on")
    texts = _load_original_items(folder, carried, output)
    evaluations = tuple(
        tuple(
            _with_common_scores(one, own[one.suite], texts if number == 0 else {})
            for one in stage
            if one.suite in carried
        )
        for number, stage in enumerate(before.evaluations)
    )
    return PreviousRun(str(folder), before.stages[1:], evaluations, _stage_learned(folder, told, carried)), tuple(
        warnings
    )


def _suite_difference(previous: Evaluation, current: Evaluation) -> str | None:
    if [item.id for item in previous.items] != [item.id for item in current.items]:
        return "its items are not those of the earlier run"
    known = {(one.metric, one.name): one.signature for one in previous.scores}
    for score in current.scores:
        if known.get((score.metric, score.name), score.signature) != score.signature:
            return f"{score.name} is measured otherwise ({known[score.metric, score.name]}; now {score.signature})"
    if not any((one.metric, one.name) in known for one in current.scores):
        return "it has none of the earlier run's scores"
    return None


def _score_mismatch_warnings(run: str, previous: Evaluation, current: Evaluation) -> Iterator[str]:
    now = {(one.metric, one.name): one.value for one in current.scores}
    for score in previous.scores:
        value = now.get((score.metric, score.name), score.value)
        if not (math.isclose(value, score.value, rel_tol=SCORE_TOLERANCE, abs_tol=1e-6) or value != value):
            yield (
                f"{previous.suite}/{score.name} is {value:.6g} at the start, "
                f"and was {score.value:.6g} at the end of {run}: "
                "the two runs do not measure alike (precision, device, or the model's files)"
            )


def _with_common_scores(
    previous: Evaluation, current: Evaluation, texts: Mapping[str, Mapping[str, Item]]
) -> Evaluation:
    """The earlier evaluation with the scores that this run has too, in its order; texts: of items, where known."""
    known: dict[tuple[str, str], Score] = {(score.metric, score.name): score for score in previous.scores}
    scores = [known[key] for score in current.scores if (key := (score.metric, score.name)) in known]
    words = texts.get(previous.suite, {})
    return replace(previous, items=tuple(words.get(item.id, item) for item in previous.items), scores=tuple(scores))


def _load_original_items(folder: Path, suites: Sequence[str], output: str) -> dict[str, dict[str, Item]]:
    """Suite -> id -> item with the first base model's answer, out of the folder of the first of all earlier runs.

    They are for the eye alone: where one is no longer there, a report has no example of it.
    """
    try:
        while str(path := finished_run.load_run_json(folder, "spec.json")["model"]["path"]).startswith(RUN_SCHEME):
            folder = find_run(path.removeprefix(RUN_SCHEME), output)
        files = {suite: folder / "predictions" / f"{suite}-stage0.jsonl" for suite in suites}
        return {
            suite: {item.id: item for item in predictions.load_predictions(file).items}
            for suite, file in files.items()
            if file.is_file()
        }
    except HarnessError:
        return {}


def _stage_learned(folder: Path, report: Mapping[str, Any], carried: Sequence[str]) -> dict[str, int]:
    try:
        return {
            str(suite): int(stage)
            for matrix in report["forgetting"]
            for suite, stage in zip(matrix["suites"], matrix["learned"], strict=True)
            if stage is not None and suite in carried
        }
    except (KeyError, TypeError, ValueError) as error:
        what = f"is no report of a run ({type(error).__name__}: {error})"
        raise HarnessError(str(folder / "report.json"), what, "run it again") from error
