"""Results that are read from a run's folder: scores, items and training steps as pandas data frames.

Everything heavy is imported within the functions, so that `import harness` stays light.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.types import Evaluation, Item

if TYPE_CHECKING:
    import pandas as pd

    from harness.comparison.compare import Comparison
    from harness.report.finished_run import FinishedRun

SCORE_COLUMNS = (
    *("stage", "stage_name", "suite", "role", "metric", "score", "value", "low", "high", "stderr", "n"),
    *("higher_is_better", "method", "signature"),
)
"""Columns of `RunResult.scores`."""


def load_run(path: str | os.PathLike[str]) -> RunResult:
    """Load the results of a run.

    A run that is not finished has the scores, items and steps that it has written so far, and no `report`.

    Args:
        path: The folder of the run, or its name in `runs`.

    Raises:
        HarnessError: There is no such run, or it is an experiment of several runs.
    """
    from harness.utils.find_run import find_run

    folder = find_run(Path(path))
    if (folder / "arms").is_dir():
        hint = f'call harness.load_experiment("{folder}")'
        raise HarnessError(str(folder), "is an experiment of several runs", hint)
    return RunResult(folder)


def load_experiment(path: str | os.PathLike[str]) -> ExperimentResult:
    """Load the results of an experiment of arms.

    Args:
        path: The folder of the experiment, or its name in `runs`.

    Raises:
        HarnessError: There is no such experiment, or none of its arms has a result.
    """
    from harness.utils.find_run import find_run

    folder = find_run(Path(path))
    if not (folder / "arms").is_dir():
        raise HarnessError(str(folder), "is not an experiment", f'call harness.load_run("{folder}")')
    return ExperimentResult(folder)


class _FolderResult:
    """Results in a folder. Each attribute is read when it is first used.

    Attributes:
        folder: The folder of the run or experiment.
        name: The name of the folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use the results in a folder; `load_run` and `load_experiment` find it by name."""
        self.folder = Path(folder)
        self.name = self.folder.resolve().name


class RunResult(_FolderResult):
    """The results of one run."""

    def __repr__(self) -> str:
        return f"RunResult({self.name}: {self.headline if self.is_finished else 'not finished'})"

    @property
    def is_finished(self) -> bool:
        """Whether the run has its report."""
        return (self.folder / "report.json").is_file()

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The spec with all defaults."""
        return self._load_json("spec.json")

    @cached_property
    def report(self) -> dict[str, Any]:
        """The content of `report.json`. Raises HarnessError if the run is not finished."""
        return self._load_json("report.json")

    @property
    def headline(self) -> str:
        """What was forgotten, learned and kept, in one sentence."""
        return str(self.report.get("verdict", {}).get("headline", ""))

    @property
    def passed(self) -> bool:
        """Whether every blocking condition of the gate holds; true without a gate."""
        from harness.gate import gate_outcome
        from harness.report.html.run_files import parse_gate_result

        return gate_outcome(tuple(map(parse_gate_result, self.report.get("gate", ())))) == "passed"

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that have scores, `base` first."""
        return self._scores_file.stages[: len(self._scores_file.evaluations)]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score after every stage, with its 95 % interval.

        Columns: `stage` (0 is the base model), `stage_name`, `suite`, `role`, `metric`, `score`, `value`, `low`,
        `high`, `stderr`, `n`, `higher_is_better`, `method` and `signature`.
        """
        stages = self._scores_file.evaluations
        rows = [
            {**row, "stage": stage, "stage_name": self.stages[stage]}
            for stage, evaluations in enumerate(stages)
            for row in _score_rows(evaluations, self._role_of_suite)
        ]
        return _frame(rows, SCORE_COLUMNS)

    @cached_property
    def changes(self) -> pd.DataFrame:
        """The change of every score from the base model to the last stage, paired over the items.

        Columns: `suite`, `role`, `metric`, `score`, `n`, then `before`, `after` and `difference`, each with `_low` and
        `_high`, then `verdict`, `margin`, `higher_is_better` and `needed`.
        """
        rows = [{"score": change["name"], **change} for change in self.report["changes"]]
        estimates = [f"{key}{end}" for key in ("before", "after", "difference") for end in ("", "_low", "_high")]
        last = ("verdict", "margin", "higher_is_better", "needed")
        return _frame(map(_flatten_estimates, rows), ("suite", "role", "metric", "score", "n", *estimates, *last))

    @cached_property
    def matrix(self) -> pd.DataFrame:
        """The values of all scores: one row per stage (the base first), columns (suite, score)."""
        import pandas as pd

        columns = {
            (evaluation.suite, score.name): None
            for stage in self._scores_file.evaluations
            for evaluation in stage
            for score in evaluation.scores
        }
        rows = [
            {(evaluation.suite, score.name): score.value for evaluation in evaluations for score in evaluation.scores}
            for evaluations in self._scores_file.evaluations
        ]
        index = pd.Index(self.stages, name="stage")
        header = pd.MultiIndex.from_tuples(list(columns), names=("suite", "score"))
        return pd.DataFrame([[row.get(column) for column in columns] for row in rows], index, header, dtype="float64")

    @cached_property
    def forgetting(self) -> pd.DataFrame:
        """The summaries of the stage × suite matrix, such as backward transfer, with their 95 % intervals.

        Columns: `score`, `summary`, `value`, `low`, `high` and `n`. Empty if the report has no summaries.
        """
        rows = [
            {"score": matrix.get("called") or matrix["score"], "summary": name, **estimate}
            for matrix in self.report["forgetting"]
            for name, estimate in matrix["summaries"].items()
        ]
        return _frame(rows, ("score", "summary", "value", "low", "high", "n"))

    @cached_property
    def steps(self) -> pd.DataFrame:
        """The training log: one row per logged step, with `stage`, `step`, `loss`, `learning_rate` and so on."""
        from harness.report.html.run_files import load_step_log

        folders = {file.parent.name: file for file in self.folder.glob("stages/*/steps.jsonl")}
        planned = [str(stage) for stage in self._planned_stages]
        names = [*(name for name in planned if name in folders), *sorted(folders.keys() - set(planned))]
        rows = [
            {"stage": name, **entry, "step": int(entry["step"])}
            for name in names
            for entry in load_step_log(folders[name], [])
        ]
        columns = dict.fromkeys(key for row in rows for key in row)
        return _frame(rows, list(columns) or ["stage", "step", "loss"])

    def items(self, suite: str, stage: int | str = -1) -> pd.DataFrame:
        """Load the items of a suite: prompt, reference, answer, and the item's own value of each score.

        Args:
            suite: Name of the suite.
            stage: Name of the stage, or its index in `stages`: 0 is the base model, −1 the last stage.

        Returns:
            One row per item, with the fields of `harness.Item` and one column per score. Items that were written by
            harness 0.2 or before have no columns of scores.

        Raises:
            HarnessError: There is no such suite or stage, or its items were not stored.
        """
        from harness.evaluation.predictions import predictions_path

        index = self._stage_index(stage)
        suites = [evaluation.suite for evaluation in self._scores_file.evaluations[index]]
        if suite not in suites:
            where, what = f"{self.name}, stage {self.stages[index]}", f"there is no suite {suite!r}"
            raise HarnessError(where, what, f"there are: {', '.join(suites)}")
        earlier = len(self._scores_file.stages) - 1 - len(self._planned_stages)
        if index < earlier:
            hint = f'load the items of that run: harness.load_run("{self.report.get("earlier")}")'
            raise HarnessError(self.name, f"the stage {self.stages[index]!r} belongs to the earlier run", hint)
        return _load_items(predictions_path(self.folder / "predictions", suite, index - max(earlier, 0)))

    def _stage_index(self, stage: int | str) -> int:
        if isinstance(stage, str) and stage in self.stages:
            return self.stages.index(stage)
        if isinstance(stage, int) and -len(self.stages) <= stage < len(self.stages):
            return stage % len(self.stages)
        raise HarnessError(self.name, f"there is no stage {stage!r}", f"there are: {', '.join(self.stages)}")

    @cached_property
    def _scores_file(self) -> FinishedRun:
        from harness.report.finished_run import load_finished_run

        return load_finished_run(self.folder)

    @cached_property
    def _planned_stages(self) -> Sequence[str]:
        """Names of the stages that this run trains, without those of an earlier run that it continues."""
        data = self._load_json("data.json") if (self.folder / "data.json").is_file() else {}
        stages: Sequence[str] = data.get("stages") or self._scores_file.stages[1:]
        return stages

    @property
    def _role_of_suite(self) -> dict[str, str]:
        return {name: suite.get("role", "domain") for name, suite in self.spec.get("evaluate", {}).items()}

    def _load_json(self, name: str) -> dict[str, Any]:
        from harness.report.finished_run import load_run_json

        return load_run_json(self.folder, name)


class ExperimentResult(_FolderResult):
    """The results of an experiment of arms."""

    def __repr__(self) -> str:
        return f"ExperimentResult({self.name}: {self.report.get('advice', '')})"

    @cached_property
    def report(self) -> dict[str, Any]:
        """The content of `arms.json`. Raises HarnessError if no arm has a result."""
        from harness.report.finished_run import load_run_json

        return load_run_json(self.folder, "arms.json")

    @cached_property
    def arms(self) -> dict[str, dict[int, RunResult]]:
        """Arm -> seed -> the run, for every run that has a result."""
        arms: dict[str, dict[int, RunResult]] = {}
        for name, folders in self.report["arms"].items():
            # Folders are stored as paths of the machine that ran them; an earlier version had one run for each arm.
            paths = folders.values() if isinstance(folders, Mapping) else [folders]
            runs = [RunResult(self.folder / "arms" / Path(path).name) for path in paths]
            arms[name] = {int(run.spec["seed"]): run for run in runs}
        return arms

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score of every arm.

        Columns: `arm`, `suite`, `role`, `score`, `n`, `before`, `after`, `change` (after − before), `against` (arm −
        baseline), each with `_low` and `_high`, then `p_holm` and `verdict`.
        """
        return _frame(map(_flatten_estimates, self.report["scores"]))

    @cached_property
    def points(self) -> pd.DataFrame:
        """Gain and forgetting of every arm: `arm`, `gain` and `forgotten`, each with `_low` and `_high`.

        With several seeds each also has `_sd`, `_over_seeds_low` and `_over_seeds_high`.
        """
        return _frame(map(_flatten_estimates, self.report["points"]))

    @cached_property
    def equal_gain(self) -> pd.DataFrame:
        """Forgetting of every arm where it gains as much as all arms reach; empty without mid-stage evaluations.

        Columns: `arm`, `forgotten` and `against` (arm − baseline), each with `_low` and `_high`, and `verdict`. The
        gain and what is missing are in `report["equal_gain"]`.
        """
        columns = [f"{key}{end}" for key in ("forgotten", "against") for end in ("", "_low", "_high")]
        points = (self.report.get("equal_gain") or {}).get("points", ())
        return _frame(map(_flatten_estimates, points), ("arm", *columns, "verdict"))


class EvaluationResult:
    """The scores of a model that was evaluated without training.

    Attributes:
        file: The file with the scores.
    """

    def __init__(self, file: Path, evaluations: Sequence[Evaluation], roles: Mapping[str, str]) -> None:
        """Use the evaluations of one model.

        Args:
            file: The file with the scores.
            evaluations: One for each suite.
            roles: Suite -> its role.
        """
        self.file, self._evaluations, self._roles = file, evaluations, roles

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score with its 95 % interval; the columns of `RunResult.scores` without the stage."""
        return _frame(_score_rows(self._evaluations, self._roles), SCORE_COLUMNS[2:])

    def items(self, suite: str) -> pd.DataFrame:
        """Load the items of a suite, see `RunResult.items`. Raises HarnessError if there is no such suite."""
        from harness.evaluation.predictions import predictions_path

        stages = {evaluation.suite: evaluation.stage for evaluation in self._evaluations}
        if suite not in stages:
            raise HarnessError(str(self.file), f"there is no suite {suite!r}", f"there are: {', '.join(stages)}")
        return _load_items(predictions_path(self.file.parent / "predictions", suite, stages[suite]))


class ComparisonResult:
    """Runs compared with a baseline.

    Attributes:
        comparison: The comparison, as `harness compare` shows it.
    """

    def __init__(self, comparison: Comparison) -> None:
        """Use a comparison."""
        self.comparison = comparison

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs, the columns `name`, `status`, `mode`, `mitigations`, `learning_rate`, `seconds` and `folder`."""
        columns = ("name", "status", "mode", "mitigations", "learning_rate", "seconds", "folder")
        return _frame(map(asdict, self.comparison.runs), columns)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score that a run shares with the baseline.

        Columns: `run`, `baseline`, `suite`, `role`, `score`, `higher_is_better`, `n`, then `first` (the baseline),
        `second` (the run) and `difference`, each with `_low` and `_high`, then `test`, `p`, `p_holm` and `verdict`.
        Of runs with several seeds it has one row per method: `method`, `seeds`, `after` (with `after_sd`), `change`
        (to the base model) and `difference` (to the baseline).
        """
        from harness.comparison.table_export import csv_columns, pair_records

        return _frame(pair_records(self.comparison), csv_columns(self.comparison))

    def to_csv(self) -> str:
        """Return every score as CSV, as `harness compare --csv` writes it."""
        from harness.comparison.table_export import format_csv

        return format_csv(self.comparison)

    def to_markdown(self) -> str:
        """Return one score of each suite as a Markdown table of one row per run."""
        from harness.comparison.table_export import format_markdown

        return format_markdown(self.comparison)

    def to_latex(self) -> str:
        """Return one score of each suite as a LaTeX table (booktabs) of one row per run."""
        from harness.comparison.table_export import format_latex

        return format_latex(self.comparison)

    @cached_property
    def items(self) -> pd.DataFrame:
        """The items that changed most, with the answers of both runs.

        Columns: `run`, `suite`, `score`, `id`, `prompt`, `reference`, `change`, `first_answer` and `second_answer`.
        """
        names = [run.name for run in self.comparison.runs]
        rows = [
            {
                **asdict(item),
                "run": names[item.run],
                "first_answer": item.first.answer,
                "second_answer": item.second.answer,
            }
            for item in self.comparison.items
        ]
        columns = ("run", "suite", "score", "id", "prompt", "reference", "change", "first_answer", "second_answer")
        return _frame(rows, columns)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """The spec keys whose values differ: one row per key, one column per run."""
        import pandas as pd

        names = [run.name for run in self.comparison.runs]
        return pd.DataFrame.from_dict(dict(self.comparison.differences), orient="index", columns=names)


def _score_rows(evaluations: Iterable[Evaluation], roles: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            **{field.name: getattr(score, field.name) for field in fields(score)},
            "score": score.name,
            "role": roles.get(evaluation.suite, "domain"),
        }
        for evaluation in evaluations
        for score in evaluation.scores
    ]


def _load_items(file: Path) -> pd.DataFrame:
    from harness.evaluation.predictions import load_predictions

    if not file.is_file():
        hint = "evaluate the run again: harness evaluate RUN"
        raise HarnessError(str(file), "the items were not stored", hint)
    stored = load_predictions(file)
    names = dict.fromkeys(name for scores in stored.scores.values() for name in scores)
    rows = [
        {**asdict(item), "computed": stored.computed.get(item.id), **stored.scores.get(item.id, {})}
        for item in stored.items
    ]
    return _frame(rows, [*(field.name for field in fields(Item)), *names])


def _flatten_estimates(record: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each estimate of a record by its value and its bounds, and each spread by what it is over the seeds."""
    row: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            row |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
        elif isinstance(value, Mapping) and {"sd", "over_seeds"} <= value.keys():
            name, interval = key.removesuffix("_spread"), value["over_seeds"]
            bounds = {f"{name}_over_seeds_{end}": interval[end] for end in ("low", "high")}
            row |= {f"{name}_sd": value["sd"], **bounds}
        elif not isinstance(value, list | tuple | Mapping):
            row[key] = value
    return row


def _frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Build a data frame of rows. columns: those to keep, in order; None: all."""
    import pandas as pd

    records = list(rows)
    if columns is None:
        return pd.DataFrame(records)
    return pd.DataFrame([[record.get(column) for column in columns] for record in records], columns=list(columns))
