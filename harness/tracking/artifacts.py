"""Files of a run as others may have them: without secrets, tables of answers, the model in a form that MLflow knows.

Knows files and reports, not the store. Imports torch only where a model is packed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.types import Evaluation, Item, Score
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from harness.report.run_report import Report

TEXT_SUFFIXES = {".json", ".jsonl", ".html", ".svg", ".md", ".txt", ".log", ".csv", ".yaml"}
MAX_TABLE_ROWS = 1000
"""Rows of a table of answers; `predictions/` has them all."""


@contextmanager
def redacted_file(file: Path, secrets: Secrets) -> Iterator[Path]:
    """The file, or where it is a text that holds one of the secrets, a copy of it without."""
    if not secrets.literals or file.suffix not in TEXT_SUFFIXES or not _contains_secret(file, secrets):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="harness-clean-") as folder:
        copy = Path(folder) / file.name
        with _open_text(file, "r") as old, _open_text(copy, "w") as new:
            new.writelines(secrets.redact(line) for line in old)
        yield copy


def build_answer_tables(report: Report) -> dict[str, dict[str, Any]]:
    """`tables/<suite>.json` -> the answers of a suite, before and after, with the scores of each item.

    Each table has `columns` and `data`, a list of rows, as MLflow's own tables do. Suites without answers have none.
    """
    first, last = ({one.suite: one for one in stage} for stage in (report.evaluations[0], report.evaluations[-1]))
    made = {suite: _answer_table(first[suite], last[suite]) for suite in last if suite in first}
    return {f"tables/{suite}.json": table for suite, table in made.items() if table["data"]}


def load_step_metrics(file: Path) -> dict[int, dict[str, float]]:
    """The updates that a stage has written to its `steps.jsonl`, the last of each; a torn line is none."""
    found: dict[int, dict[str, float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            values = json.loads(line)
            number = int(values.pop("step"))
        except (ValueError, KeyError, AttributeError):
            continue
        found[number] = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return found


def mid_stage_metrics(payload: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation within a stage. payload: `scores`, and `combined`, which may be None."""
    total = {} if payload["combined"] is None else {"combined": payload["combined"]}
    return {f"during/{name}": value for name, value in {**payload["scores"], **total}.items()}


def load_mid_stage_metrics(file: Path) -> dict[int, dict[str, float]]:
    """The same of every evaluation that a stage has written to its `evaluations.jsonl`; a torn line is none."""
    found: dict[int, dict[str, float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            told = json.loads(line)
            values = mid_stage_metrics(told)
            found[int(told["step"])] = {name: float(one) for name, one in values.items() if one is not None}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def list_model_files(folder: Path) -> list[tuple[Path, str]]:
    """The files of a saved model with the folder of each below the run's artifacts."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file, "/".join(("model", *file.parent.relative_to(folder).parts))) for file in files]


def pack_for_mlflow(folder: Path, target: Path) -> Path:
    """The saved model as one of `mlflow.transformers`, which `mlflow.transformers.load_model` loads as a pipeline.

    Loads the model once more, on the CPU; an adapter is merged into its base model for that.
    Raises HarnessError when it cannot be loaded.
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
            what = f"cannot be loaded to be packed: {error}"
            raise HarnessError(str(folder), what, 'set track.model to "files"') from error
        pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        needed = [f"transformers=={transformers.__version__}", f"torch=={torch.__version__.partition('+')[0]}"]
        # Named here, since MLflow would start a process that loads the model only to see what it imports.
        mlflow.transformers.save_model(pipeline, path=str(target), task="text-generation", pip_requirements=needed)
    return target


def _answer_table(first: Evaluation, last: Evaluation) -> dict[str, Any]:
    from harness.utils.json_files import json_safe

    before = {item.id: item for item in first.items}
    means = [score for score in last.scores if _is_mean(score)]
    columns = ["id", "prompt", "reference", "base answer", "answer", "finish", *(score.name for score in means)]
    rows = [
        [*_answer_columns(before.get(item.id), item), *(score.statistics[number][0] for score in means)]
        for number, item in enumerate(last.items[:MAX_TABLE_ROWS])
        if item.answer is not None
    ]
    return {"columns": columns, "data": json_safe(rows)}


def _answer_columns(before: Item | None, after: Item) -> Sequence[str | None]:
    answer = before.answer if before is not None else None
    return [after.id, after.prompt, after.reference, answer, after.answer, after.finish]


def _is_mean(score: Score) -> bool:
    """Whether the first statistic of an item is its own score."""
    return bool(score.statistics) and all(len(one) == 2 and one[1] == 1.0 for one in score.statistics)


def _contains_secret(file: Path, secrets: Secrets) -> bool:
    with _open_text(file, "r") as lines:
        return any(secrets.redact(line) != line for line in lines)


def _open_text(file: Path, mode: str) -> Any:
    # Bytes that are no UTF-8 stay what they are.
    return file.open(mode, encoding="utf-8", errors="surrogateescape", newline="")
