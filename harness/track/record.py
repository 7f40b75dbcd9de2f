"""One run and its stages in an MLflow store: every method is a handful of calls to the server.

Knows MLflow, and nothing of events or threads. Any method raises whatever the store raises.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.contracts import Plan, Stage
from harness.track import entries

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


class Record:
    """A parent run, and a child run for the stage that is going on."""

    def __init__(self, uri: str, experiment: str, name: str, tags: Mapping[str, str]) -> None:
        """Make the experiment, if it is new, and the run `name` in it."""
        self.client: MlflowClient = store.open_store(uri, create=True)
        self.experiment_id = _experiment(self.client, experiment, store.artifact_location(uri))
        self.name = name
        run = self.client.create_run(self.experiment_id, run_name=name, tags={**_person(), **tags})
        self.run_id: str = run.info.run_id
        self.child_id: str | None = None

    def begin_child(self, number: int, stage: Stage) -> None:
        """Make the child run of a stage and write its settings."""
        tags = {**_person(), "mlflow.parentRunId": self.run_id, "stage": str(number)}
        child = self.client.create_run(self.experiment_id, run_name=f"{self.name}/{stage.name}", tags=tags)
        self.child_id = child.info.run_id
        self.params(self.child_id, entries.stage_parameters(stage))

    def end_child(self, status: str) -> None:
        """End the child run; nothing when there is none."""
        if self.child_id is not None:
            self.client.set_terminated(self.child_id, status)
            self.child_id = None

    def end(self, status: str) -> None:
        """End the run with `FINISHED` or `FAILED`."""
        self.client.set_terminated(self.run_id, status)

    def tag(self, key: str, value: str) -> None:
        """Write one tag of the run."""
        self.client.set_tag(self.run_id, key, value)

    def params(self, run_id: str, flat: Mapping[str, str]) -> None:
        """Write parameters, in batches that every server takes."""
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in flat.items()]
        for batch in entries.batches(params, entries.PARAMS_IN_BATCH):
            self.client.log_batch(run_id, params=batch)

    def metrics(self, metrics: Sequence[Metric], *, child: bool = False) -> None:
        """Write metrics of the run, or of the stage that is going on."""
        run_id = self._child() if child else self.run_id
        for batch in entries.batches(metrics, entries.METRICS_IN_BATCH):
            self.client.log_batch(run_id, metrics=batch)

    def inputs(self, plan: Plan, digests: Mapping[str, str], stage: Stage | None = None) -> None:
        """Write the data sets of the stage going on, or those of the whole run with its suites, with their digests."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        stages = plan.stages if stage is None else (stage,)
        used = [(part.source, "training") for one in stages for part in one.parts]
        held_out = [(suite.source, "evaluation") for suite in plan.suites] if stage is None else []
        made = []
        for source, context in dict.fromkeys(used + held_out):
            kind, options = plan.sources[source]
            digest = digests.get(source, "").removeprefix("sha256:")[: entries.LONGEST_DIGEST]
            origin = json.dumps(entries.public(options), ensure_ascii=False, default=str)
            dataset = Dataset(name=source, digest=digest, source_type=kind, source=origin)
            made.append(DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", context)]))
        self.client.log_inputs(self.run_id if stage is None else self._child(), made)

    def text(self, name: str, value: Any) -> None:
        """Keep a value as a JSON file of the run."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
        self.client.log_text(self.run_id, text, name)

    def file(self, file: Path, folder: str | None = None) -> None:
        """Keep a file of this machine as a file of the run."""
        self.client.log_artifact(self.run_id, str(file), folder)

    def _child(self) -> str:
        if self.child_id is None:
            raise RuntimeError("no stage is going on")
        return self.child_id


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            # Another run may have made it in the meantime.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _person() -> dict[str, str]:
    # What MLflow's own fluent functions write, so that its page shows who and what made a run.
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "harness", "mlflow.source.type": "LOCAL"}
