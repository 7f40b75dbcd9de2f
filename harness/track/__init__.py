"""Events → MLflow: a parent run with one child a stage, its parameters, metrics, data sets and files.

Listens to a run through `harness_observe` and is known to nobody but `harness.run`. A store that fails, hangs or is not
there never holds a run up: one warning, and the rest of the run goes untracked; all of it is in the run's folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.contracts import Evaluation, Event, Plan
from harness.hooks import hookimpl
from harness.track import entries
from harness.track.background import Background

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from harness.track.record import Record

FIRST_ANSWER = 60.0
"""Seconds that a run waits for its MLflow run to be made."""
LAST_ANSWER = 120.0
"""Seconds without any progress after which a run that has ended stops waiting for the rest to be written."""
FLUSH_STEPS, FLUSH_SECONDS = 20, 5.0

FILES = ("data.json", "scores.json", "report.json", "predictions/*")


def _print(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


class Tracker:
    """Writes one run to an MLflow tracking store.

    settings: the spec's `track`: `enabled`, `experiment` (None: `name`), `uri` (None: $MLFLOW_TRACKING_URI, else
        `sqlite:///mlflow.db`). warn: called once, on the thread of the run, with one line that says what failed.

    Metrics of the parent are `suite/score` with the stage as step (the base model is step 0) and, at the end,
    `suite/score/delta`; those of a child are the training's own, by update. `mlflow.json` in the run's folder says
    where the run is tracked.
    """

    def __init__(self, settings: Mapping[str, Any], name: str, warn: Callable[[str], None] = _print) -> None:
        self._enabled = bool(settings["enabled"])
        self._uri = store.tracking_uri(settings["uri"])
        self._experiment: str = settings["experiment"] or name
        self._warn = warn
        self._work = Background("harness-track")
        self._failed = False
        self._record: Record | None = None
        self._plan: Plan | None = None
        self._folder = Path()
        self._digests: Mapping[str, str] = {}
        self._shares: Sequence[Mapping[str, Mapping[str, float]]] = ()
        self._steps: list[Metric] = []
        self._step_count, self._flushed = 0, time.monotonic()

    @property
    def run_id(self) -> str | None:
        """The MLflow id of the parent run; None before `run_started`, and when no run could be made."""
        return None if self._record is None else self._record.run_id

    @property
    def uri(self) -> str | None:
        """The tracking URI without its password; None when tracking is off or has failed."""
        return store.without_secrets(self._uri) if self._enabled and not self._failed else None

    @hookimpl
    def harness_observe(self, event: Event) -> None:
        """Take an event in. Raises nothing, and does not wait for the store except at a run's start and end."""
        handler = getattr(self, f"_{event.kind}", None)
        if handler is None or not self._enabled or self._failed:
            return
        try:
            handler(event.stage, event.data)
        except Exception as error:
            self._fail(error)
        if self._work.error is not None:
            self._fail(self._work.error)

    def _fail(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            text = f"MLflow tracking at {store.without_secrets(self._uri)} has stopped: {store.reason(error)}"
            self._warn(f"{text}; the run goes on, and all that it measures is kept in {self._folder}")

    def _run_started(self, stage: int, data: Mapping[str, Any]) -> None:
        self._plan, self._folder = data["plan"], Path(data["folder"])
        # Imported here and not in the background: this thread goes on to import half of the same libraries.
        from harness.track.record import Record

        store.import_mlflow()
        spec = entries.public(data["spec"])
        environment = entries.public(data["environment"])
        tags = {**_tags(spec), "harness.id": str(data["id"]), "harness.folder": str(self._folder.absolute())}

        def create() -> None:
            record = Record(self._uri, self._experiment, self._folder.name, tags)
            uri = store.without_secrets(store.absolute(self._uri))
            facts = {"uri": uri, "experiment": self._experiment, "run_id": record.run_id}
            (self._folder / "mlflow.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            self._record = record

        self._work.put(create)
        self._work.wait(FIRST_ANSWER)
        self._put(lambda record: record.params(record.run_id, entries.parameters(spec)))
        self._put(lambda record: record.text("spec.json", spec))
        self._put(lambda record: record.text("environment.json", environment))

    def _data(self, stage: int, data: Mapping[str, Any]) -> None:
        self._shares = data.get("shares", ())
        plan, self._digests = self._plan, data["digests"]
        self._put(lambda record: record.tag("template_fingerprint", str(data["template"])))
        if plan is not None:
            self._put(lambda record: record.inputs(plan, self._digests))

    def _evaluated(self, stage: int, data: Mapping[str, Any]) -> None:
        evaluations: Sequence[Evaluation] = data["evaluations"]
        metrics = _metrics(
            {f"{one.suite}/{score.name}": score.value for one in evaluations for score in one.scores}, stage
        )
        self._put(lambda record: record.metrics(metrics))

    def _stage_started(self, stage: int, data: Mapping[str, Any]) -> None:
        plan, started = self._plan, data["stage"]
        self._steps, self._step_count, self._flushed = [], 0, time.monotonic()
        self._put(lambda record: record.begin_child(stage, started))
        shares = self._shares[stage - 1] if stage <= len(self._shares) else {}
        realised = {f"share/{name}/{unit}": share for name, units in shares.items() for unit, share in units.items()}
        self._steps += _metrics(realised, 0)
        if plan is not None:
            self._put(lambda record: record.inputs(plan, self._digests, started))

    def _step(self, stage: int, data: Mapping[str, Any]) -> None:
        self._steps += _metrics(data["metrics"], data["step"])
        self._step_count += 1
        if self._step_count >= FLUSH_STEPS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def _stage_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        trained = data["trained"]
        totals = {"stage/loss": trained.loss, "stage/seconds": trained.seconds, "stage/tokens": trained.tokens}
        self._steps += _metrics(totals, trained.steps)
        self._flush()
        self._put(lambda record: record.end_child("FINISHED"))

    def _run_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        changes = data["report"].changes
        metrics = _metrics({f"{one.suite}/{one.name}/delta": one.difference.value for one in changes}, stage)
        self._put(lambda record: record.metrics(metrics))
        self._end("FINISHED")

    def _run_failed(self, stage: int, data: Mapping[str, Any]) -> None:
        if self._record is None:
            return
        self._flush()
        self._put(lambda record: record.end_child("FAILED"))
        text = store.without_secrets(str(data["error"]))[: entries.LONGEST_VALUE]
        self._put(lambda record: record.tag("error", text))
        self._end("FAILED")

    def _end(self, status: str) -> None:
        for pattern in FILES:
            folder = pattern.rpartition("/")[0] or None
            for file in sorted(self._folder.glob(pattern)):
                self._put(lambda record, file=file, folder=folder: record.file(file, folder))  # type: ignore[misc]
        self._put(lambda record: record.end(status))
        self._work.wait(LAST_ANSWER)

    def _flush(self) -> None:
        metrics, self._steps = self._steps, []
        self._step_count, self._flushed = 0, time.monotonic()
        if metrics:
            self._put(lambda record: record.metrics(metrics, child=True))

    def _put(self, job: Callable[[Record], None]) -> None:
        record = self._record
        if record is not None:
            self._work.put(lambda: job(record))


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(entries.allowed(name), float(value), now, int(step)) for name, value in values.items()]


def _tags(spec: Mapping[str, Any]) -> dict[str, str]:
    return {
        "mode": _names(spec.get("mode")),
        "mitigations": _names(spec.get("mitigations")),
        "model": str(spec.get("model", {}).get("path", "")),
        "template": _names(spec.get("template")),
    }


def _names(slot: Any) -> str:
    return slot if isinstance(slot, str) else ", ".join(sorted(slot or ()))
