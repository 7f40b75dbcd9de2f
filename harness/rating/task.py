"""A rating task: which items of which models are rated, by which rubric. It is stored in the folder of the first run.

`ratings/<name>/task.json` fixes models, items, seed and rubric when the first rater begins. The ratings of each rater
are beside it, see `store`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.rating.rated_answers import RatedItem, RatedModel, load_rated_items
from harness.rating.rubric import Dimension, Rubric, load_rubric, parse_rubric
from harness.rating.sampling import Showing, left_model, sample_items, showings_of_rater
from harness.spec_keys.evaluation import NAME_PATTERN
from harness.utils.json_depth import load_json
from harness.utils.json_files import write_json

TASK_FORMAT = 1
TASK_FILE = "task.json"
SUMMARY_FILE = "summary.json"
RATINGS_FOLDER = "ratings"
DEFAULT_ITEMS = 50
DEFAULT_SEED = 0
DEFAULT_RUBRIC = "en"


@dataclass(frozen=True)
class TaskRequest:
    """What the user asks for; None: the stored task, else the default.

    Attributes:
        items: Number of items.
        seed: Seed of the sample, the order and the sides.
        rubric: `en`, `zh` or a path.
        suites: Names of suites; empty: all with answers.
        name: Name of the task.
    """

    items: int | None = None
    seed: int | None = None
    rubric: str | None = None
    suites: tuple[str, ...] = ()
    name: str | None = None


@dataclass(frozen=True)
class RatingTask:
    """A rating task.

    Attributes:
        folder: Where task and ratings are stored.
        models: One model, whose answers are graded, or two, which are compared.
        items: The sampled items.
        rubric: The rubric.
        seed: The seed.
        digest: Digest of models, items, rubric and seed. Ratings of another task have another one.
    """

    folder: Path
    models: tuple[RatedModel, ...]
    items: tuple[RatedItem, ...]
    rubric: Rubric
    seed: int
    digest: str

    @property
    def is_comparison(self) -> bool:
        """Whether two answers are compared."""
        return len(self.models) == 2

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What a rater decides about an item."""
        return (self.rubric.comparison,) if self.is_comparison else self.rubric.dimensions

    def showings(self, rater: str) -> tuple[Showing, ...]:
        """Return what a rater sees, in order."""
        return showings_of_rater(self.items, len(self.models), self.seed, rater)

    def left(self, item_key: str, rater: str, *, repeat: bool = False) -> int:
        """Return the index of the model whose answer is on the left."""
        return left_model(item_key, len(self.models), self.seed, rater, repeat=repeat)


def open_task(models: Sequence[RatedModel], request: TaskRequest) -> RatingTask:
    """Load the task of the models, or create it.

    Args:
        models: One or two models.
        request: What the user asks for.

    Raises:
        HarnessError: The name is not one, a stored task differs from the request, the answers have changed since it
            began, or a summary of another task would be replaced.
    """
    if request.name is not None and not re.fullmatch(NAME_PATTERN, request.name):
        hint = "use at most 100 letters, digits, dots, underscores and hyphens, and begin with a letter or a digit"
        raise HarnessError("--name", f"{request.name!r} is not the name of a task", hint)
    folder = models[0].folder / RATINGS_FOLDER / (request.name or _default_name(models))
    if (folder / TASK_FILE).is_file():
        task = _load_task(folder, tuple(models), request)
        require_own_summaries(task)
        return task
    rubric = load_rubric(request.rubric or DEFAULT_RUBRIC)
    seed = DEFAULT_SEED if request.seed is None else request.seed
    items = sample_items(load_rated_items(models, request.suites), request.items or DEFAULT_ITEMS, seed)
    document = {
        "models": [{"name": model.name, "stage": model.stage} for model in models],
        "seed": seed,
        "rubric": rubric.document,
        "items": [{"key": item.key, "digest": item.digest} for item in items],
    }
    task = RatingTask(folder, tuple(models), items, rubric, seed, _digest(document))
    require_own_summaries(task)
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"format": TASK_FORMAT, "harness": version("harness-sft")}
    write_json(folder / TASK_FILE, {**versions, **document}, indent=2)
    return task


def summary_folders(task: RatingTask) -> list[Path]:
    """Return the folders that get the summary of a task: its own, and a copy in that of the other run."""
    name = f"pair-{task.models[0].name}" if task.folder.name == _default_name(task.models) else task.folder.name
    others = [model.folder for model in task.models[1:] if model.folder != task.models[0].folder]
    return [task.folder, *(folder / RATINGS_FOLDER / name for folder in others)]


def require_own_summaries(task: RatingTask) -> None:
    """Check that a summary of this task replaces none of another one.

    Raises:
        HarnessError: A folder belongs to another task.
    """
    for folder in summary_folders(task):
        try:
            summary = load_json((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
            owner = summary.get("task", task.digest)
        except (OSError, ValueError, AttributeError):
            owner = task.digest  # there is none, or none that can be read
        if owner != task.digest or (folder != task.folder and (folder / TASK_FILE).is_file()):
            what = "has the ratings of another task, whose summary would be replaced"
            raise HarnessError(str(folder), what, "give this task another --name, or move that folder away")


def _load_task(folder: Path, models: tuple[RatedModel, ...], request: TaskRequest) -> RatingTask:
    file = folder / TASK_FILE
    try:
        stored = load_json(file.read_text(encoding="utf-8"))
        document = {key: stored[key] for key in ("models", "seed", "rubric", "items")}
        digests = {entry["key"]: entry["digest"] for entry in stored["items"]}
        stored_models = [(entry["name"], entry["stage"]) for entry in stored["models"]]
    except (ValueError, KeyError, TypeError) as error:
        what = f"is not a rating task ({type(error).__name__}: {error})"
        raise HarnessError(str(file), what, "delete its folder, or start another task with --name") from error
    rubric = parse_rubric(stored["rubric"], str(file))
    new_task = "leave the option out, or start another task with --name"
    if stored_models != [(model.name, model.stage) for model in models]:
        names = " and ".join(name for name, _ in stored_models)
        raise HarnessError(str(file), f"the task rates {names}", new_task)
    conflicts = {
        "--items": request.items not in (None, len(digests)),
        "--seed": request.seed not in (None, stored["seed"]),
        "--rubric": request.rubric is not None and load_rubric(request.rubric).document != rubric.document,
        "--suite": bool(request.suites) and {key.partition("/")[0] for key in digests} != set(request.suites),
    }
    for option, differs in conflicts.items():
        if differs:
            raise HarnessError(option, f"the task in {folder} was started with another value", new_task)
    by_key = {item.key: item for item in load_rated_items(models)}
    for key, digest in digests.items():
        if key not in by_key or by_key[key].digest != digest:
            what = f"the answers to {key} have changed since the ratings began"
            raise HarnessError(str(folder), what, "start another task with --name, or restore the predictions")
    items = tuple(by_key[key] for key in digests)
    return RatingTask(folder, models, items, rubric, int(stored["seed"]), _digest(document))


def _default_name(models: Sequence[RatedModel]) -> str:
    if len(models) == 1:
        return "scores"
    return "base" if models[0].folder == models[1].folder else f"pair-{models[1].name}"


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
