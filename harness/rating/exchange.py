"""Exchange of ratings by files: colleagues' ratings, CSV, and tasks and results of Label Studio and Argilla.

The tasks show no name of a run. The sides of a comparison are those of a rater named after the tool, since the tool
decides who rates which item.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from harness.errors import HarnessError
from harness.rating.rubric import LEVELS, Dimension
from harness.rating.store import BOTH_BAD, NOT_APPLICABLE, RatingStore, Value, clean_rater_name, is_record
from harness.rating.summary import canonical_value
from harness.rating.task import RatingTask
from harness.utils.formatting import printable
from harness.utils.json_depth import load_json

LABEL_STUDIO, ARGILLA = "label-studio", "argilla"
CSV_COLUMNS = (
    *("rater", "suite", "item", "repeat", "dimension", "value", "left", "preference_for_second", "comment"),
    *("prompt", "reference"),
)

Rating = tuple[str, str, str, Value]
"""Rater, item, dimension and value."""


def format_csv(task: RatingTask, store: RatingStore) -> str:
    """Return every current rating as CSV, one row per rater, item and dimension, with the names of the models."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    items = {item.key: item for item in task.items}
    for rater in store.raters():
        state = store.load(rater)
        for (key, repeat), values in state.values.items():
            if (key, repeat) in state.skipped:
                continue
            for dimension, value in values.items():
                left = state.left[key, repeat]
                preference = canonical_value(value, left, is_comparison=True) if task.is_comparison else None
                row = {
                    "rater": rater,
                    "suite": items[key].suite,
                    "item": key.partition("/")[2],
                    "repeat": int(repeat),
                    "dimension": dimension,
                    "value": value,
                    "left": task.models[left].name if task.is_comparison else "",
                    "preference_for_second": "" if preference is None else int(preference),
                    "comment": state.comments.get((key, repeat), ""),
                    "prompt": items[key].prompt,
                    "reference": items[key].reference,
                }
                writer.writerow({name: _safe_cell(value) for name, value in row.items()})
    return stream.getvalue()


def _safe_cell(value: Any) -> Any:
    """Return a cell that a spreadsheet does not run as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


# -- tasks for other tools --------------------------------------------------------------------------------------------


def label_studio_tasks(task: RatingTask) -> tuple[str, str]:
    """Return the tasks for Label Studio as JSON, and its labeling configuration as XML."""
    tasks = [{"data": {"item": item["id"], **item["fields"]}} for item in _neutral_items(task, LABEL_STUDIO)]
    shown = "".join(
        f'<Header value={quoteattr(title)}/><Text name="{name}" value="${name}"/>'
        for name, title in _field_titles(task).items()
    )
    questions = "".join(
        f"<Header value={quoteattr(f'{dimension.name}: {dimension.question}')}/>"
        f'<Choices name="{dimension.key}" toName="prompt" choice="single-radio" required="true">'
        + "".join(
            f'<Choice alias="{value}" value={quoteattr(f"{value}: {label}")}/>'
            for value, label in _labels(dimension, task).items()
        )
        + "</Choices>"
        for dimension in task.dimensions
    )
    config = f"<View>{shown}{questions}<Header value={quoteattr(escape(task.rubric.instructions))}/></View>\n"
    return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n", config


def argilla_records(task: RatingTask) -> tuple[str, str]:
    """Return the records for Argilla 2 as JSON, and the settings of their data set as JSON."""
    records = [
        {
            "id": item["id"],
            "fields": item["fields"],
            "metadata": {},
            "suggestions": {},
            "responses": {},
            "vectors": {},
            "status": "pending",
        }
        for item in _neutral_items(task, ARGILLA)
    ]
    settings = {
        "guidelines": task.rubric.instructions,
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "fields": [
            {"name": name, "title": title, "required": False, "settings": {"type": "text", "use_markdown": False}}
            for name, title in _field_titles(task).items()
        ],
        "questions": [
            {
                "name": dimension.key,
                "title": dimension.name,
                "description": dimension.question,
                "required": True,
                "settings": {
                    "type": "label_selection",
                    "options": [
                        {"value": str(value), "text": f"{value}: {label}", "description": None}
                        for value, label in _labels(dimension, task).items()
                    ],
                    "visible_options": None,
                },
            }
            for dimension in task.dimensions
        ],
        "vectors": [],
        "metadata": [],
    }
    return tuple(json.dumps(value, ensure_ascii=False, indent=1) + "\n" for value in (records, settings))  # type: ignore[return-value]


def _neutral_items(task: RatingTask, tool: str) -> Iterator[dict[str, Any]]:
    """Yield id and shown texts of each item, in the order of a rater named after the tool."""
    for showing in task.showings(tool):
        if showing.repeat:
            continue
        answers = [printable(answer) for answer in showing.item.answers]
        answers = answers[::-1] if showing.left == 1 else answers
        named = dict(zip(("left", "right") if task.is_comparison else ("answer",), answers, strict=True))
        fields = {"prompt": printable(showing.item.prompt), **named, "reference": printable(showing.item.reference)}
        yield {"id": showing.item.key, "fields": fields}


def _field_titles(task: RatingTask) -> dict[str, str]:
    answers = {"left": "Answer A", "right": "Answer B"} if task.is_comparison else {"answer": "Answer"}
    return {"prompt": "Question", **answers, "reference": "Reference response"}


def _labels(dimension: Dimension, task: RatingTask) -> dict[Value, str]:
    labels: dict[Value, str] = {level: dimension.levels[level] for level in LEVELS}
    if dimension.not_applicable:
        labels[BOTH_BAD if task.is_comparison else NOT_APPLICABLE] = dimension.not_applicable
    return labels


# -- import -----------------------------------------------------------------------------------------------------------


def import_ratings(task: RatingTask, store: RatingStore, file: Path) -> dict[str, int]:
    """Add the ratings in a file: records of `harness rate`, or an export of Label Studio or Argilla in JSON.

    Records that the store has already are not added twice.

    Args:
        task: The task.
        store: Its ratings.
        file: The file.

    Returns:
        Rater -> number of records added.

    Raises:
        HarnessError: The file has another format, or ratings of another task.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HarnessError(str(file), f"cannot be read: {reason}", "give a file of ratings") from None
    try:
        document = load_json(text)
    except ValueError:
        document = None
    if isinstance(document, list):
        return _add_records(store, list(_records_of_tool(task, document, file)))
    return _add_records(store, list(_parse_records(task, text, file)))


def _parse_records(task: RatingTask, text: str, file: Path) -> Iterator[Mapping[str, Any]]:
    items = {item.key for item in task.items}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):  # a text can have other line breaks
        try:
            record = load_json(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not is_record(record) or clean_rater_name(record["rater"]) is None:
            hint = "give a ratings-*.jsonl of harness rate, or an export of Label Studio or Argilla in JSON"
            raise HarnessError(f"{file}:{number}", "is not a record of a rating", hint)
        if record["task"] != task.digest:
            hint = "the colleague must rate the same runs with the same --items, --seed, --suite and --rubric"
            raise HarnessError(f"{file}:{number}", "belongs to another rating task", hint)
        where = f"{file}:{number}"
        hint = "give the file as harness rate wrote it"
        if record["action"] in ("rate", "skip", "comment") and record["item"] not in items:
            raise HarnessError(where, f"the task has no item {record['item']!r}", hint)
        if record["action"] == "rate":
            _require_value(task, record["dimension"], record["value"], where)
            if record.get("left", 0) not in range(len(task.models)):
                raise HarnessError(where, f"the task has no model number {record['left']!r}", hint)
        yield record


def _records_of_tool(task: RatingTask, entries: Sequence[Any], file: Path) -> Iterator[Mapping[str, Any]]:
    for index, entry in enumerate(entries):
        where = f"{file} [{index}]"
        try:
            tool = LABEL_STUDIO if "annotations" in entry else ARGILLA
            ratings = list(_label_studio_ratings(entry) if tool == LABEL_STUDIO else _argilla_ratings(entry))
        except (KeyError, TypeError, AttributeError) as error:
            what = f"is not an entry of Label Studio or Argilla ({type(error).__name__}: {error})"
            raise HarnessError(where, what, "export the results as JSON") from None
        keys = {item.key for item in task.items}
        for rater, item, dimension, value in ratings:
            _require_value(task, dimension, value, where)
            if item not in keys:
                raise HarnessError(where, f"the task has no item {item!r}", "import the results of this task's export")
            yield {
                "format": 1,
                "task": task.digest,
                "rater": rater,
                "action": "rate",
                "item": item,
                "repeat": False,
                "dimension": dimension,
                "value": value,
                "left": task.left(item, tool),
            }


def _require_value(task: RatingTask, key: str, value: Value, where: str) -> None:
    dimension = next((dimension for dimension in task.dimensions if dimension.key == key), None)
    is_value = isinstance(value, int | str) and not isinstance(value, bool)
    if dimension is None or not is_value or value not in _labels(dimension, task):
        raise HarnessError(where, f"{value!r} is not a value of {key!r}", "use the values of the rubric")


def _label_studio_ratings(entry: Mapping[str, Any]) -> Iterator[Rating]:
    for annotation in entry["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        person = annotation.get("completed_by")
        name = (person.get("email") or person.get("id")) if isinstance(person, dict) else person
        for result in annotation["result"]:
            (choice,) = result["value"]["choices"]
            yield _rater_name(LABEL_STUDIO, name), entry["data"]["item"], result["from_name"], _parse_value(choice)


def _argilla_ratings(entry: Mapping[str, Any]) -> Iterator[Rating]:
    for dimension, responses in (entry["responses"] or {}).items():
        for response in responses:
            if response.get("status") in (None, "submitted"):
                rater = _rater_name(ARGILLA, response.get("user_id"))
                yield rater, entry["id"], dimension, _parse_value(response["value"])


def _parse_value(text: Any) -> Value:
    """Return the value of a label, which is the value, or the value with its text."""
    name = re.split(r"[:\s]", str(text), maxsplit=1)[0]
    return int(name) if name.isdigit() else name


def _rater_name(tool: str, person: Any) -> str:
    return clean_rater_name(f"{tool} {str(person)[:28]}") or tool


def _add_records(store: RatingStore, records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    added: dict[str, int] = {}
    for rater in dict.fromkeys(record["rater"] for record in records):
        known = {_identity(record) for record in store.records(rater)}
        new = [record for record in records if record["rater"] == rater and _identity(record) not in known]
        if new:
            store.append_records(rater, new)
        added[rater] = len(new)
    return added


def _identity(record: Mapping[str, Any]) -> str:
    return str(record.get("id") or json.dumps(record, sort_keys=True))
