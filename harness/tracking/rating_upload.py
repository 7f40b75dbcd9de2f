"""Send the ratings of a run to MLflow: files, summary metrics, and the ratings of each item as human feedback.

MLflow attaches feedback to traces, so each rated item becomes a trace with the question and the answers. Nothing is
sent twice: items are found by a tag, feedback by its name, its source and its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RunError
from harness.tracking import mlflow_entries, mlflow_store
from harness.utils.json_depth import load_json
from harness.utils.json_files import read_json_lines
from harness.utils.redaction import Secrets, redact_text

if TYPE_CHECKING:
    from harness.tracking.mlflow_run import MlflowRun

ITEM_TAG = "harness.rated_item"
MAX_TRACES = 500
"""Traces of one page of a search."""


def send_ratings(folder: Path, uri: str | None) -> None:
    """Send the ratings in the folder of a run to the store that tracks the run; nothing for a run without one.

    Args:
        folder: The folder of the run.
        uri: The tracking URI; None: the one in `mlflow.json`.

    Raises:
        RunError: The store fails.
    """
    info_file = folder / "mlflow.json"
    if not info_file.is_file():
        return
    info = load_json(info_file.read_text(encoding="utf-8"))
    store_uri = mlflow_store.resume_uri(mlflow_store.tracking_uri(uri), None if uri else info)
    try:
        from harness.tracking.mlflow_run import MlflowRun

        client = mlflow_store.open_store(store_uri)
        spec = load_json((folder / "spec.json").read_text(encoding="utf-8"))
        secrets = Secrets.collect(spec, store_uri)
        mlflow_run = MlflowRun(client, client.get_run(str(info["run_id"])), secrets, resumed=True)
        log_ratings(mlflow_run, folder)
        if (folder / "report.html").is_file():
            mlflow_run.log_file(folder / "report.html")
    except Exception as error:  # MLflow raises errors of many types
        what = f"the ratings are not tracked: {mlflow_store.error_summary(error)}"
        raise RunError(redact_text(store_uri), what, f"when the store works again: harness track {folder}") from error


def log_ratings(mlflow_run: MlflowRun, folder: Path) -> None:
    """Log all rating tasks in a run's folder.

    Args:
        mlflow_run: The run in the store.
        folder: The folder of the run.
    """
    for summary_file in sorted((folder / "ratings").glob("*/summary.json")):
        summary = load_json(summary_file.read_text(encoding="utf-8"))
        name = summary_file.parent.name
        step = sum(int(rater["rated"]) for rater in summary["raters"])
        mlflow_run.log_metrics(mlflow_entries.to_mlflow_metrics(rating_metrics(name, summary), step))
        for file in sorted(summary_file.parent.iterdir()):
            if file.suffix in (".json", ".jsonl") and not file.name.startswith("."):
                mlflow_run.log_file(file, f"ratings/{name}")
        _log_feedback(mlflow_run, summary, read_json_lines(summary_file.parent / "feedback.jsonl"))


def rating_metrics(name: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return metric -> value of a rating summary.

    Args:
        name: Name of the rating task.
        summary: Its `summary.json`.
    """
    values = {f"{entry['key']}": entry["mean"] and entry["mean"]["value"] for entry in summary["dimensions"]}
    values |= {f"{entry['key']}/alpha": entry["agreement"]["alpha"] for entry in summary["dimensions"]}
    found = summary["comparison"]
    if found is not None:
        values |= {key: found[key] for key in ("wins", "ties", "losses", "both_bad", "p")}
        values |= {key: found[key] and found[key]["value"] for key in ("net", "left_rate")}
        values["alpha"] = found["agreement"]["alpha"]
    return {f"ratings/{name}/{key}": float(value) for key, value in values.items() if value is not None}


def _log_feedback(mlflow_run: MlflowRun, summary: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
    """Log each item as a trace, and its ratings as feedback of their raters."""
    if not items:
        return
    from mlflow.entities import AssessmentSource, AssessmentSourceType, Feedback
    from mlflow.tracing.client import TracingClient

    redact, tracing = mlflow_run.store.secrets.redact, TracingClient(mlflow_run.client.tracking_uri)
    known = _find_traces(mlflow_run, summary["task"])
    for item in items:
        tag = f"{summary['task']}/{item['item']}"
        trace_id, existing = known.get(tag, (None, []))
        if trace_id is None:
            trace_id = _create_trace(mlflow_run, item, tag)
        for rating in item["ratings"]:
            source = AssessmentSource(AssessmentSourceType.HUMAN, redact(rating["rater"]))
            earlier = [
                each for each in existing if each.name == rating["name"] and each.source.source_id == source.source_id
            ]
            if any(each.value == rating["value"] for each in earlier):
                continue
            feedback = Feedback(
                name=rating["name"],
                value=rating["value"],
                source=source,
                rationale=redact(rating["comment"]) or None,
                overrides=earlier[-1].assessment_id if earlier else None,
            )
            tracing.log_assessment(trace_id, feedback)


def _find_traces(mlflow_run: MlflowRun, task: str) -> dict[str, tuple[str, list[Any]]]:
    """Return tag of an item -> id of its trace and its feedback."""
    found: dict[str, tuple[str, list[Any]]] = {}
    token = None
    while True:
        page = mlflow_run.client.search_traces(
            locations=[mlflow_run.experiment_id], max_results=MAX_TRACES, page_token=token, include_spans=False,
            filter_string=f"tags.`harness.rating_task` = '{task}'",
        )  # fmt: skip
        for trace in page:
            feedback = [each for each in trace.info.assessments or [] if getattr(each, "valid", True)]
            found[trace.info.tags.get(ITEM_TAG, "")] = (trace.info.trace_id, feedback)
        token = page.token
        if not token:
            return found


def _create_trace(mlflow_run: MlflowRun, item: Mapping[str, Any], tag: str) -> str:
    import mlflow

    redact = mlflow_run.store.secrets.redact
    inputs = {"question": redact(item["prompt"])}
    outputs = {redact(name): redact(answer) for name, answer in item["answers"].items()}
    tags = {ITEM_TAG: tag, "harness.rating_task": tag.partition("/")[0]}
    earlier_uri = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(
        mlflow_run.client.tracking_uri
    )  # MLflow writes traces to the store of the process, whatever the client's is
    try:
        span = mlflow_run.client.start_trace(
            "rated item", inputs=inputs, tags=tags, experiment_id=mlflow_run.experiment_id
        )
        mlflow_run.client.end_trace(span.trace_id, outputs=outputs)
        mlflow.flush_trace_async_logging()
    finally:
        mlflow.set_tracking_uri(earlier_uri)
    mlflow_run.client.link_traces_to_run([span.trace_id], mlflow_run.run_id)
    return str(span.trace_id)
