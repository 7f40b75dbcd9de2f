"""Prepare a run's files for upload: redacted text files, answer tables, the model as an `mlflow.transformers` model.

Imports torch only to pack a model.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.tracking import metric_names
from harness.types import Evaluation, Item, Score
from harness.utils.json_files import read_json_lines
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from harness.report.run_report import Report

TEXT_SUFFIXES = {".json", ".jsonl", ".html", ".svg", ".md", ".txt", ".log", ".csv", ".yaml"}
MAX_TABLE_ROWS = 1000
"""Maximum rows of an answer table; `predictions/` has all rows."""


@contextmanager
def redacted_file(file: Path, secrets: Secrets) -> Iterator[Path]:
    """Yield the file, or a redacted copy if its name contains a secret, or its text if it is a text file."""
    name = secrets.redact(file.name)
    is_unclean_text = file.suffix in TEXT_SUFFIXES and _contains_secret(file, secrets)
    if name == file.name and not is_unclean_text:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="harness-clean-") as folder:
        copy = Path(folder) / name
        if is_unclean_text:
            with _open_text(file, "r") as old, _open_text(copy, "w") as new:
                new.writelines(secrets.redact(line) for line in old)
        else:
            copy.symlink_to(file.absolute())
        yield copy


def build_answer_tables(report: Report) -> dict[str, dict[str, Any]]:
    """Build `tables/<suite>.json` -> the answers of a suite, before and after, with the scores of each item.

    Each table has `columns` and `data`, a list of rows, like MLflow's own tables. Suites without answers have no table.
    """
    first, last = (
        {evaluation.suite: evaluation for evaluation in stage}
        for stage in (report.evaluations[0], report.evaluations[-1])
    )
    tables = {suite: _answer_table(first[suite], last[suite]) for suite in last if suite in first}
    return {f"tables/{suite}.json": table for suite, table in tables.items() if table["data"]}


def load_step_metrics(file: Path) -> dict[int, dict[str, float]]:
    """Read the metrics of each step from a stage's `steps.jsonl`; the last line of a step counts, cut lines do not."""
    metrics_by_step: dict[int, dict[str, float]] = {}
    for values in read_json_lines(file):
        try:
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError):
            continue
        metrics_by_step[step] = {
            name: math.nan if value is None else float(value)  # JSON has null for numbers that are not finite
            for name, value in values.items()
            if value is None or isinstance(value, int | float)
        }
    return metrics_by_step


def mid_stage_metrics(payload: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a mid-stage evaluation. Numbers of mitigations keep their names.

    Args:
        payload: `scores`; `combined`, which may be None; and `mitigations`, which runs of earlier versions lack.
    """
    combined = {} if payload["combined"] is None else {"combined": payload["combined"]}
    scores = {metric_names.mid_stage_name(name): value for name, value in {**payload["scores"], **combined}.items()}
    return {**scores, **payload.get("mitigations", {})}


def load_mid_stage_metrics(file: Path) -> dict[int, dict[str, float]]:
    """Read the metrics of each mid-stage evaluation from a stage's `evaluations.jsonl`. Cut lines are skipped."""
    metrics_by_step: dict[int, dict[str, float]] = {}
    for payload in read_json_lines(file):
        try:
            values = mid_stage_metrics(payload)
            metrics_by_step[int(payload["step"])] = {
                name: math.nan if value is None else float(value) for name, value in values.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return metrics_by_step


def list_model_files(folder: Path) -> list[tuple[Path, str]]:
    """List the files of a saved model, each with its artifact folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file, "/".join(("model", *file.parent.relative_to(folder).parts))) for file in files]


def pack_for_mlflow(folder: Path, target: Path) -> Path:
    """Save a model as an `mlflow.transformers` model, which `mlflow.transformers.load_model` loads as a pipeline.

    Loads the model once more, on the CPU, and merges an adapter into its base model.

    Args:
        folder: The saved model.
        target: The folder to write to.

    Returns:
        `target`.

    Raises:
        HarnessError: The model cannot be loaded.
    """
    import mlflow.transformers
    import torch
    import transformers

    from harness.utils.silence import silence_libraries

    with silence_libraries():
        try:
            if (folder / "adapter_config.json").is_file():
                from peft import AutoPeftModelForCausalLM

                model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto").merge_and_unload()
            else:
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, ImportError) as error:
            what = f"cannot load the model to log it: {error}"
            raise HarnessError(str(folder), what, 'set track.mlflow.model to "files"') from error
        pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        requirements = [f"transformers=={transformers.__version__}", f"torch=={torch.__version__.partition('+')[0]}"]
        # Given here, since MLflow would otherwise load the model in another process to infer its imports.
        mlflow.transformers.save_model(
            pipeline, path=str(target), task="text-generation", pip_requirements=requirements
        )
    return target


def _answer_table(first: Evaluation, last: Evaluation) -> dict[str, Any]:
    from harness.utils.json_files import json_safe

    before = {item.id: item for item in first.items}
    means = [score for score in last.scores if _is_mean(score)]
    columns = ["id", "prompt", "reference", "base answer", "answer", "finish", *(score.name for score in means)]
    rows = [
        [*_answer_columns(before.get(item.id), item), *(score.statistics[index][0] for score in means)]
        for index, item in enumerate(last.items[:MAX_TABLE_ROWS])
        if item.answer is not None
    ]
    return {"columns": columns, "data": json_safe(rows)}


def _answer_columns(before: Item | None, after: Item) -> Sequence[str | None]:
    answer = before.answer if before is not None else None
    return [after.id, after.prompt, after.reference, answer, after.answer, after.finish]


def _is_mean(score: Score) -> bool:
    """Return whether the first statistic of an item is the item's score."""
    return bool(score.statistics) and all(len(vector) == 2 and vector[1] == 1.0 for vector in score.statistics)


def _contains_secret(file: Path, secrets: Secrets) -> bool:
    with _open_text(file, "r") as lines:
        return any(secrets.redact(line) != line for line in lines)


def _open_text(file: Path, mode: str) -> Any:
    # Bytes that are not UTF-8 are kept unchanged.
    return file.open(mode, encoding="utf-8", errors="surrogateescape", newline="")
