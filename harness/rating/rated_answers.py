"""Load the answers that are rated: of one model, or of two over the same items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.evaluation.predictions import header_path, load_predictions
from harness.types import Item
from harness.utils.formatting import join_names, shorten_text
from harness.utils.json_depth import load_json

BASE_STAGE = 0


@dataclass(frozen=True)
class RatedModel:
    """A model whose answers are rated.

    Attributes:
        name: The name of the run, with ` (base)` for the model before training.
        folder: The folder of the run.
        stage: Index of the stage in the names of its predictions files; 0 is the model before training.
    """

    name: str
    folder: Path
    stage: int


@dataclass(frozen=True)
class RatedItem:
    """A question with the answer of each model.

    Attributes:
        key: `suite/id`.
        suite: Name of the suite.
        prompt: The question.
        reference: The reference response.
        answers: One per model.
        stratum: The suite and the slices, by which items are sampled.
    """

    key: str
    suite: str
    prompt: str
    reference: str
    answers: tuple[str, ...]
    stratum: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A digest of question, reference and answers."""
        text = json.dumps([self.prompt, self.reference, *self.answers])
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def find_rated_models(folders: Sequence[Path], *, with_base: bool) -> tuple[RatedModel, ...]:
    """Return the models to rate: the last stage of each run, or of one run before and after training.

    Args:
        folders: The folders of one or two runs.
        with_base: Whether the base model of the only run is the first model.

    Raises:
        HarnessError: A run has no stored answers.
    """
    models = []
    for folder in folders:
        name = folder.resolve().name
        last = max((stage for _, stage in _complete_files(folder)), default=None)
        if last is None:
            hint = f"finish the run, or evaluate it again: harness evaluate {folder}"
            raise HarnessError(str(folder), "has no complete predictions", hint)
        if with_base:
            if last == BASE_STAGE:
                raise HarnessError(str(folder), "has answers of one model only", "leave out --base")
            models.append(RatedModel(f"{name} (base)", folder, BASE_STAGE))
        models.append(RatedModel(name, folder, last))
    if len({model.name for model in models}) < len(models):
        raise HarnessError(str(folders[0]), "is given twice", "name two different runs, or use --base")
    return tuple(models)


def load_rated_items(models: Sequence[RatedModel], suites: Sequence[str] = ()) -> tuple[RatedItem, ...]:
    """Load the items that every model answered, in the order of the first model's files.

    Items are matched by their id, a hash of their content.

    Args:
        models: One or two models.
        suites: Names of suites; empty: all that have answers.

    Raises:
        HarnessError: There is no such suite, there are no answers, or the prompts of an item differ.
    """
    answered = [_load_answered_items(model) for model in models]
    known = list(dict.fromkeys(suite for suite, _ in answered[0]))
    for suite in suites:
        if suite not in known:
            hint = f"suites with answers: {join_names(known) or 'none'}"
            raise HarnessError(f"--suite {suite}", f"{models[0].name} has no answers of it", hint)
    items = []
    for (suite, item_id), item in answered[0].items():
        same = [item, *(of_model.get((suite, item_id)) for of_model in answered[1:])]
        others = [other for other in same if other is not None]
        if (suites and suite not in suites) or len(others) < len(models):
            continue
        _require_same_prompt(suite, others, models)
        stratum = (suite, *(f"{column}={value}" for column, value in item.slices))
        answers = tuple(other.answer or "" for other in others)
        items.append(RatedItem(f"{suite}/{item_id}", suite, item.prompt, item.reference, answers, stratum))
    if not items:
        what = "there are no answers" if len(models) == 1 else "the two have no answered item in common"
        raise HarnessError(" and ".join(model.name for model in models), what, _ANSWERS_HINT)
    return tuple(items)


_ANSWERS_HINT = "answers are generated if a suite has a metric of answers, e.g. rouge"


def _require_same_prompt(suite: str, items: Sequence[Item], models: Sequence[RatedModel]) -> None:
    first = items[0]
    for item, model in zip(items[1:], models[1:], strict=True):
        for field in ("prompt", "reference"):
            texts = getattr(first, field), getattr(item, field)
            if texts[0] != texts[1]:
                shown = " and ".join(repr(_around_difference(text, texts)) for text in texts)
                what = f"the {field}s of item {item.id} differ between {models[0].name} and {model.name}: {shown}"
                raise HarnessError(f"suite {suite}", what, "compare runs that were evaluated on the same rows")


def _around_difference(text: str, texts: Sequence[str]) -> str:
    pairs = zip(*texts, strict=False)
    start = next((index for index, (one, other) in enumerate(pairs) if one != other), min(map(len, texts)))
    return shorten_text(text[max(0, start - 20) :], 60)


def _load_answered_items(model: RatedModel) -> dict[tuple[str, str], Item]:
    """Return (suite, item id) -> the item, for the items that have an answer."""
    return {
        (str(predictions.header["suite"]), item.id): item
        for file, stage in _complete_files(model.folder)
        if stage == model.stage
        for predictions in [load_predictions(file)]
        for item in predictions.items
        if item.answer is not None
    }


def _complete_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the complete predictions files of a run, and their stages."""
    for file in sorted((folder / "predictions").glob("*.jsonl")):
        try:
            header = load_json(header_path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(header, dict) and header.get("whole") and "suite" in header:
            stage = file.stem.rpartition("-stage")[2]
            if stage.isdigit():
                yield file, int(stage)
