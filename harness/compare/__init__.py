"""Tracked runs → one table of what each did to its suites, and one of what differs in their specs.

Reads an MLflow tracking store; knows how `harness.track` writes to it, and imports no model library.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.errors import HarnessError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from rich.console import RenderableType

LISTED = 10
DELTA = "/delta"


@dataclass(frozen=True)
class Final:
    """One score of a run after the last stage that it came to. delta: against the base model, None while the run has
    not finished. verdict: of the run's own report (`better`, `worse`, `no evidence`), None when it has written none."""

    value: float
    delta: float | None
    verdict: str | None


@dataclass(frozen=True)
class Compared:
    """One run as its store knows it. scores: `suite/score` -> its final state; parameters: the flat spec."""

    run_id: str
    name: str
    status: str
    mode: str
    mitigations: str
    learning_rate: str
    seconds: float | None
    scores: Mapping[str, Final]
    parameters: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other. differences: parameter -> its value in each run, None where a run has none."""

    uri: str
    runs: tuple[Compared, ...]
    differences: Mapping[str, tuple[str | None, ...]]

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data for JSON."""
        return {
            "uri": self.uri,
            "runs": [_without_nan(asdict(run)) for run in self.runs],
            "differences": {key: list(values) for key, values in self.differences.items()},
        }


def compare(runs: Sequence[str], experiment: str | None = None, uri: str | None = None) -> Comparison:
    """Read runs from a tracking store.

    runs: MLflow run ids, run names or run folders, in the order in which they are shown. experiment: every run of it,
        oldest first, or where to look for `runs`. uri: of the store; None: $MLFLOW_TRACKING_URI, else
        `sqlite:///mlflow.db`.
    Raises HarnessError when the store cannot be read, or for a run or experiment that is not in it.
    """
    where = store.tracking_uri(uri)
    shown = store.without_secrets(where)
    if not runs and experiment is None:
        raise HarnessError("compare", "no run is named", "give run ids, names or folders, or --experiment NAME")
    try:
        client = store.open_store(where)
        return _compare(client, shown, runs, experiment)
    except HarnessError:
        raise
    except Exception as error:
        hint = "run something first, or name the store with --uri"
        raise HarnessError(shown, f"the tracking store cannot be read: {store.reason(error)}", hint) from error


def render(comparison: Comparison) -> RenderableType:
    """The comparison for a terminal: the runs, their scores suite by suite, and what differs in their specs."""
    from harness.compare.view import View

    return View(comparison)


def _compare(client: MlflowClient, uri: str, names: Sequence[str], experiment: str | None) -> Comparison:
    known = list(_runs(client, uri, experiment))
    if not known:
        what = (
            "holds no run of harness"
            if experiment is None
            else f"the experiment {experiment!r} holds no run of harness"
        )
        raise HarnessError(uri, what, "run a spec first: harness run SPEC")
    chosen = [_find(name, known, uri) for name in names] or known
    unique = list({run.info.run_id: run for run in chosen}.values())
    compared = tuple(_compared(client, run) for run in unique)
    keys = dict.fromkeys(key for run in compared for key in run.parameters)
    values = {key: tuple(run.parameters.get(key) for run in compared) for key in sorted(keys)}
    return Comparison(uri, compared, {key: row for key, row in values.items() if len(set(row)) > 1})


def _runs(client: MlflowClient, uri: str, experiment: str | None) -> Iterator[Run]:
    """The parent runs that harness has made, oldest first."""
    experiments = {one.name: one.experiment_id for one in _pages(client.search_experiments)}
    if experiment is not None and experiment not in experiments:
        there = ", ".join(sorted(experiments)) or "none"
        raise HarnessError(uri, f"there is no experiment {experiment!r}", f"there are: {there}")
    ids = [experiments[experiment]] if experiment is not None else list(experiments.values())
    yield from _pages(
        lambda page_token: client.search_runs(
            ids, "tags.`harness.id` != ''", order_by=["attributes.start_time ASC"], page_token=page_token
        )
    )


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _find(name: str, known: Sequence[Run], uri: str) -> Run:
    tracked = _tracked_as(Path(name))
    wanted = tracked["run_id"] if tracked else name
    found = [run for run in known if wanted == run.info.run_id]
    found = found or [run for run in known if wanted in (run.info.run_name, run.data.tags["harness.id"])]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(run.info.run_id for run in found)
        raise HarnessError(uri, f"{len(found)} runs are called {name!r}", f"give an id: {ids}")
    if tracked:
        raise HarnessError(uri, f"the run in {name!r} is not here", f"it was tracked at {tracked['uri']}; see --uri")
    latest = ", ".join(str(run.info.run_name) for run in reversed(known[-LISTED:]))
    more = f" and {len(known) - LISTED} older ones" if len(known) > LISTED else ""
    raise HarnessError(uri, f"there is no run {name!r}", f"there are: {latest}{more}")


def _tracked_as(folder: Path) -> dict[str, str] | None:
    """What the tracker left in a run's folder; None where there is no such folder or it was not tracked."""
    file = folder / "mlflow.json"
    if not file.is_file():
        return None
    facts: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return facts


def _compared(client: MlflowClient, run: Run) -> Compared:
    metrics: Mapping[str, float] = run.data.metrics
    verdicts = _verdicts(client, run)
    # In the order of the report, the domain before the general suite as in the spec. Of each metric MLflow gives the
    # value of the highest step, which is the last stage.
    keys = [*verdicts, *(key for key in sorted(metrics) if key not in verdicts and not key.endswith(DELTA))]
    scores = {key: Final(metrics[key], metrics.get(key + DELTA), verdicts.get(key)) for key in keys if key in metrics}
    started, ended = run.info.start_time, run.info.end_time
    return Compared(
        run_id=run.info.run_id,
        name=str(run.info.run_name),
        status=str(run.info.status).lower(),
        mode=run.data.tags.get("mode", ""),
        mitigations=run.data.tags.get("mitigations", ""),
        learning_rate=run.data.params.get("train.learning_rate", ""),
        seconds=None if not (started and ended) else (ended - started) / 1000,
        scores=scores,
        parameters=dict(run.data.params),
    )


def _verdicts(client: MlflowClient, run: Run) -> dict[str, str]:
    """`suite/score` -> verdict, out of the run's report; empty for a run that did not come to its report."""
    if not any(one.path == "report.json" for one in client.list_artifacts(run.info.run_id)):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = client.download_artifacts(run.info.run_id, "report.json", folder)
        report = json.loads(Path(file).read_text(encoding="utf-8"))
    return {f"{one['suite']}/{one['name']}": one["verdict"] for one in report["changes"]}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    return None if isinstance(value, float) and value != value else value
