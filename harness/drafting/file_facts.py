"""Read a data file and describe it: format, encoding, columns, row format, language, duplicates, groups.

Nothing is asked: each fact is found in the rows. What is a guess says so.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.reading.column_hints import find_columns
from harness.data.reading.row_formats import detect_row_format, parse_examples
from harness.data.reading.splits import connected_rows
from harness.errors import HarnessError, InvalidRow
from harness.interfaces.source import Source
from harness.registry import Registry
from harness.spec.component_options import fill_component_options
from harness.types import Example, InvalidRecord, Record
from harness.utils.data_suffixes import SOURCE_OF_SUFFIX
from harness.utils.formatting import join_names, shorten_text

MAX_ROWS = 100_000
"""Rows that are read; of a larger file the first ones."""

MAX_WORDS_OF_NAME = 5
"""A column whose name has more words is a row of a file without a header."""

MAX_INVALID_SHARE = 0.5
"""Share of unusable rows above which no spec is drafted."""

SAMPLE_BYTES = 1 << 20
"""Bytes from which encoding and delimiter are found."""

MIN_GROUPS = 10
"""Values that a column has at least to be one of groups."""

GROUP_NAME = re.compile(
    r"(?:^|[_ ])(?:id|user|customer|client|account|author|thread|conversation|session|case|order)(?:[_ ]|id|$)"
    r"|(?:客户|用户|会话|工单|订单)(?:编号|号|id)?$",
    re.IGNORECASE,
)
"""Names of columns that group rows: rows of one customer should not be on both sides of the held-out split."""

CHINESE = re.compile(r"[\u3400-\u9fff]")
JAPANESE = re.compile(r"[\u3040-\u30ff]")
WORD = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class FileFacts:
    """What is known of a data file.

    Attributes:
        path: The file.
        source: The source that reads it, e.g. `csv`.
        options: Options of the source besides `path`, e.g. an encoding.
        rows: Number of rows that were read.
        is_complete: Whether these are all rows.
        form: The row format, e.g. `alpaca`.
        mapping: The source's `columns`: standard name -> column.
        guessed: Whether the mapping was guessed from the lengths of texts.
        invalid: Rows that cannot be read or are not a conversation: their number and the first one's problem.
        examples: The conversations.
        duplicates: Rows whose prompt and response an earlier row has too.
        language: `en`, `zh`, `ja` or `other`.
        groups: Columns by which rows belong together, with the number of their values.
        separate_groups: Those of them that every row has, with the number of groups that no prompt connects.
    """

    path: Path
    source: str
    options: Mapping[str, Any]
    rows: int
    is_complete: bool
    form: str
    mapping: Mapping[str, str]
    guessed: bool
    invalid: tuple[int, str]
    examples: tuple[Example, ...] = field(repr=False)
    duplicates: int
    language: str
    groups: Mapping[str, int]
    separate_groups: Mapping[str, int] = field(default_factory=dict)


def inspect_file(registry: Registry, path: Path, columns: Mapping[str, str] | None = None) -> FileFacts:
    """Read a file and describe it.

    Args:
        registry: The components.
        path: The file.
        columns: Standard name -> column, where the user named columns; None: they are found.

    Raises:
        HarnessError: The file cannot be read, or no column is a prompt.
    """
    if path.is_dir():
        raise HarnessError(str(path), "it is a folder", f"name its files: harness init {path}/FILE")
    if not path.is_file():
        raise HarnessError(str(path), "the file does not exist", "check the path")
    source, options = _find_source(path)
    records, complete, unreadable = _read_records(registry, path, source, options)
    rows = [record.data for record in records]
    mapping, guessed = _find_mapping(path, rows, columns)
    renamed = [Record(record.location, _renamed(record.data, mapping)) for record in records]
    form = detect_row_format(_usual_rows(renamed), str(path))
    examples, invalid = _parse_rows(renamed, form, unreadable)
    if not examples:
        raise HarnessError(
            str(path), f"no row is a conversation: {invalid[1]}", "name the columns: --prompt, --response"
        )
    total = len(records) + len(unreadable)
    if invalid[0] > MAX_INVALID_SHARE * total:
        what = f"{invalid[0]:,} of {total:,} rows cannot be used, e.g. {invalid[1]}"
        raise HarnessError(str(path), what, "correct the file first: quote a field that has the delimiter")
    groups = _find_groups(rows, mapping)
    return FileFacts(
        path=path,
        source=source,
        options=options,
        rows=total,
        is_complete=complete,
        form=form,
        mapping=mapping,
        guessed=guessed,
        invalid=invalid,
        examples=tuple(examples),
        duplicates=_count_duplicates(examples),
        language=_detect_language(examples),
        groups=groups,
        separate_groups=dict(_count_separate_groups(records, examples, groups)),
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def _find_source(path: Path) -> tuple[str, dict[str, Any]]:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    source = SOURCE_OF_SUFFIX.get(suffixes[-1] if suffixes else "")
    if source is None:
        raise HarnessError(
            str(path), "its format is unknown", f"name a file that ends in {join_names(SOURCE_OF_SUFFIX)}"
        )
    with path.open("rb") as stream:
        sample = stream.read(SAMPLE_BYTES)
    if sample.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")) or source not in ("csv", "jsonl", "json", "text"):
        return source, {}
    encoding = detect_encoding(sample)
    if source != "csv":
        if encoding is not None or sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            name = encoding or "utf-16"
            hint = f"convert it: iconv -f {name} -t utf-8 {path} > {path.stem}-utf8{path.suffix}"
            raise HarnessError(str(path), f"the file is in {name}, and JSON is UTF-8", hint)
        return source, {}
    options: dict[str, Any] = {} if encoding is None else {"encoding": encoding}
    by_mark = "utf-16" if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    delimiter = _find_delimiter(sample.decode(encoding or by_mark, errors="replace"))
    return source, options if delimiter == "," else {**options, "delimiter": delimiter}


def detect_encoding(sample: bytes) -> str | None:
    """Return the encoding of a text; None: UTF-8, or UTF-16 with a byte order mark.

    A text that is not UTF-8 is Chinese in GB 18030, which includes GBK, if most of its characters are then Chinese ones
    of everyday use; otherwise it is Western in cp1252.
    """
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        pass
    else:
        return None
    text = codecs.getincrementaldecoder("gb18030")("replace").decode(sample)
    beyond_ascii = [character for character in text if ord(character) > 127]
    # GB 2312, level 1: the 3,755 characters that everyday Chinese consists of, by pronunciation
    usual = sum(0xB0 <= character.encode("gb18030", "replace")[0] <= 0xD7 for character in beyond_ascii)
    return "gb18030" if beyond_ascii and usual / len(beyond_ascii) > 0.5 else "cp1252"


def _find_delimiter(text: str) -> str:
    """Return the delimiter with which most of the first rows have the number of fields of the header."""
    best, best_score = ",", 0.0
    for delimiter in ",;\t|":
        rows = list(islice(csv.reader(text.splitlines(keepends=True), delimiter=delimiter), 50))
        if not rows or len(rows[0]) < 2:
            continue
        score = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _read_records(
    registry: Registry, path: Path, source_name: str, options: Mapping[str, Any]
) -> tuple[list[Record], bool, list[InvalidRecord]]:
    """Return the rows, whether these are all, and those that cannot be read."""
    filled = fill_component_options(registry, "sources", source_name, {"path": str(path), **options})
    source: Source = registry.create("sources", source_name, filled)
    records: list[Record] = []
    unreadable: list[InvalidRecord] = []
    complete = True
    for record in source.records():
        if len(records) == MAX_ROWS:
            complete = False
            break
        if isinstance(record, InvalidRecord):
            unreadable.append(record)
        else:
            records.append(record)
    if not records:
        if not unreadable:
            raise HarnessError(str(path), "has no rows", "name another file")
        raise HarnessError(unreadable[0].location, unreadable[0].what, unreadable[0].hint)
    return records, complete, unreadable


# -- rows -------------------------------------------------------------------------------------------------------------


def _find_mapping(
    path: Path, rows: Sequence[Mapping[str, Any]], named: Mapping[str, str] | None
) -> tuple[dict[str, str], bool]:
    """Return the source's `columns`, and whether it is a guess."""
    first = rows[0]
    if named:
        for column in named.values():
            if column not in first:
                raise HarnessError(
                    str(path), f"has no column {column!r}", f"its columns are: {join_names(list(first))}"
                )
        return {name: column for name, column in named.items() if name != column}, False
    if _has_row_format(first):
        return {}, False
    columns = find_columns(first)
    if columns:
        return columns, False
    if any(len(name.split()) > MAX_WORDS_OF_NAME for name in map(str, first)):
        what = f"its first line {shorten_text(str(next(iter(first))), 40)!r} … has texts, not the names of columns"
        raise HarnessError(str(path), what, "write the names of the columns into its first line, e.g. question,answer")
    columns_of_texts = {name: [row.get(name) for row in rows[:1000]] for name in first if isinstance(first[name], str)}
    lengths = {
        name: sum(len(str(value or "")) for value in values)
        for name, values in columns_of_texts.items()
        if _is_prose(values)
    }
    longest = sorted(lengths, key=lambda name: -lengths[name])[:2]
    if len(longest) < 2:
        hint = f"name them: --prompt COLUMN --response COLUMN; its columns are: {join_names(list(map(str, first)))}"
        raise HarnessError(str(path), "no column is known as a prompt or a response", hint)
    prompt, response = sorted(longest, key=list(first).index)
    return {"instruction": prompt, "output": response}, True


def _is_prose(values: Sequence[Any]) -> bool:
    """Return whether most values have several words, or Chinese or Japanese text: numbers, dates and labels do not."""
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    prose = sum(bool(re.search(r"[^\W\d]\s+\S*[^\W\d]", text) or CHINESE.search(text)) for text in texts)
    return prose > 0.5 * len(texts)


def _has_row_format(row: Mapping[str, Any]) -> bool:
    try:
        detect_row_format([Record("row", row)], "row")
    except HarnessError:
        return False
    return True


def _renamed(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Mapping[str, Any]:
    taken = set(mapping.values())
    return {
        **{key: value for key, value in row.items() if key not in taken},
        **{standard: row[column] for standard, column in mapping.items() if column in row},
    }


def _usual_rows(records: Sequence[Record]) -> list[Record]:
    """Return the first rows that have the columns of most rows: a single odd row must not decide the format."""
    shapes = Counter(frozenset(record.data) for record in records[:1000])
    usual = shapes.most_common(1)[0][0]
    return [record for record in records[:1000] if usual <= set(record.data)]


def _parse_rows(
    records: Sequence[Record], form: str, unreadable: Sequence[InvalidRecord]
) -> tuple[list[Example], tuple[int, str]]:
    examples: list[Example] = []
    invalid = len(unreadable)
    first = f"{unreadable[0].location} {unreadable[0].what}" if unreadable else ""
    for record in records:
        try:
            examples += parse_examples(record.data, form, record.location)
        except InvalidRow as error:
            invalid += 1
            first = first or f"{record.location} {error.what}"
    return examples, (invalid, first)


def _count_duplicates(examples: Sequence[Example]) -> int:
    """Return how many rows repeat the prompt and the response of an earlier one."""
    texts = [tuple(f"{message.content}{message.input or ''}".strip() for message in e.messages) for e in examples]
    return len(texts) - len(set(texts))


def _detect_language(examples: Sequence[Example]) -> str:
    text = "".join(message.content for example in examples[:500] for message in example.messages)
    letters = len(WORD.findall(text)) or 1
    if len(JAPANESE.findall(text)) / letters > 0.1:
        return "ja"
    if len(CHINESE.findall(text)) / letters > 0.3:
        return "zh"
    return "en" if sum(character.isascii() for character in WORD.findall(text)) / letters > 0.97 else "other"


def _find_groups(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]) -> dict[str, int]:
    """Return the columns with the name of a group whose values occur several times each."""
    groups = {}
    for name in map(str, rows[0]):
        if name in mapping.values() or not GROUP_NAME.search(name):
            continue
        values = {str(row.get(name)) for row in rows if row.get(name) not in (None, "")}
        if MIN_GROUPS <= len(values) <= 0.8 * len(rows):
            groups[name] = len(values)
    return groups


def _count_separate_groups(
    records: Sequence[Record], examples: Sequence[Example], columns: Iterable[str]
) -> Iterator[tuple[str, int]]:
    """Yield each column that every row has, with the number of its groups; groups with an equal prompt are one."""
    prompts = [
        str([(turn.content, turn.input) for turn in takewhile(lambda turn: turn.role != "assistant", example.messages)])
        for example in examples
    ]
    for column in columns:
        values = {record.location: str(record.data.get(column, "")).strip() for record in records}
        if all(value not in ("", "None") for value in values.values()):
            names = [_number_texts(prompts), _number_texts(values[example.location] for example in examples)]
            yield column, len(np.unique(connected_rows(names)))


def _number_texts(texts: Iterable[str]) -> NDArray[np.int64]:
    """Return a number for each text, equal for equal texts; an array of texts would be as wide as the longest."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
