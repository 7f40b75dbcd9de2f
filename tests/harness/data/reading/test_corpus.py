"""A corpus: conversations on disk, hashes, invalid rows, head, filter and warnings."""

import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support.corpora import corpus_in_memory

from harness.data.reading import conversation_store, source_reader
from harness.data.reading.conversation import build_example, prompt_hashes
from harness.data.reading.corpus import read_corpus, read_examples
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.spec_keys import data
from harness.types import InvalidRecord, Message, Record, ToolCall

DEFAULTS = {key: option["default"] for key, option in data.SOURCE_KEYS.items()}


class RecordingSource(Source):
    """Yields rows at x:1, x:2, ...; counts them and records whether it is closed."""

    def __init__(self, rows):
        self.rows, self.yielded, self.closed = rows, 0, False

    def records(self):
        try:
            for number, row in enumerate(self.rows, 1):
                self.yielded += 1
                yield (
                    dataclasses.replace(row, location=f"x:{number}")
                    if isinstance(row, InvalidRecord)
                    else Record(f"x:{number}", row)
                )
        finally:
            self.closed = True


def build_rows(count, **more):
    return [{"prompt": f"question {n}", "completion": f"answer {n}", **more} for n in range(count)]


@pytest.fixture
def read(tmp_path):
    def read_rows(rows, folder="c", progress=None, **options):
        source = rows if isinstance(rows, Source) else RecordingSource(rows)
        more = {"progress": progress} if progress else {}
        invalid_rows_file = tmp_path / folder / "rejected.jsonl"
        return read_corpus(
            source, {**DEFAULTS, **options}, "x", folder=tmp_path, invalid_rows_file=invalid_rows_file, **more
        )

    return read_rows


def error_lines(read, rows, **options):
    with pytest.raises(HarnessError) as caught:
        read(rows, **options)
    return caught.value.lines()


# -- on disk and back -------------------------------------------------------------------------------------------------

TOOL = {"name": "add", "description": "Adds – ja.", "parameters": {"type": "object", "properties": {"a": {}}}}
ALL_FIELDS = [
    build_example([Message("text", "Once\tupon a time.\n\u2028\x00")], "x:1"),
    build_example([Message("user", "a", input="b"), Message("assistant", "c\nd")], 'odd "place"\t\ud83d:2'),
    build_example(
        [
            Message("system", "é😀"),
            Message("user", "1 + 2?"),
            Message(
                "assistant",
                "",
                tool_calls=(ToolCall("add", {"a": 1, "b": [None, 2.5]}, "c1"), ToolCall("add", {})),
                train=False,
            ),
            Message("tool", "3", name="add", tool_call_id="c1"),
            Message("tool", "4"),
            Message("assistant", "3."),
        ],
        "x:3",
        [TOOL],
    ),
]


@pytest.fixture
def store(tmp_path):
    return conversation_store.ConversationStore.write_examples(ALL_FIELDS, tmp_path)[0]


def test_every_field_of_an_example_is_restored_from_disk(store):
    assert list(store) == ALL_FIELDS
    assert [store[index] for index in (0, 1, -1)] == ALL_FIELDS
    assert store[1:] == ALL_FIELDS[1:]
    assert [store.location_of(index) for index in range(3)] == [row.location for row in ALL_FIELDS]
    with pytest.raises(IndexError):
        store[3]


def test_view_yields_its_rows_in_the_given_order(read, monkeypatch):
    corpus = read(build_rows(300))
    monkeypatch.setattr("harness.data.reading.conversation_store.ROWS_PER_READ", 7)
    for indices in ([], [5], list(range(300)), list(range(0, 300, 3)), [299, 0, 0, 150], [*range(40, 60), 3]):
        view = corpus.select(np.array(indices, np.int64))
        prompts = [f"question {index}" for index in indices]
        assert [row.messages[0].content for row in view] == prompts
        assert [view[position].messages[0].content for position in range(len(view))] == prompts
        assert [view.location_of(position) for position in range(len(view))] == [f"x:{index + 1}" for index in indices]
        assert view.content_hashes.tolist() == [int(corpus[index].id, 16) for index in indices]
        assert [row.id for row in view[1:].select(np.arange(len(indices[1:])))] == [
            corpus[index].id for index in indices[1:]
        ]


def test_corpus_has_the_hashes_of_its_rows_in_order(read):
    corpus = read(build_rows(20))
    assert corpus.content_hashes.dtype == corpus.prompt_hashes.dtype == np.uint64
    assert [f"{key:016x}" for key in corpus.content_hashes.tolist()] == [row.id for row in corpus]
    assert [f"{key:016x}" for key in corpus.prompt_hashes.tolist()] == [prompt_hashes(row)[0] for row in corpus]
    assert (corpus.row_format, corpus.rows_read, len(corpus), corpus.name) == ("prompt_completion", 20, 20, "x")


def test_corpus_in_memory_equals_the_one_on_disk(read):
    corpus = read(build_rows(9))
    in_memory = corpus_in_memory(read_examples(RecordingSource(build_rows(9)), DEFAULTS, "x"), "x")
    assert list(in_memory) == list(corpus)
    assert in_memory.digest == corpus.digest
    assert in_memory.content_hashes.tolist() == corpus.content_hashes.tolist()
    assert in_memory.prompt_hashes.tolist() == corpus.prompt_hashes.tolist()
    assert list(in_memory.select(np.array([3, 1]))) == list(corpus.select(np.array([3, 1])))
    assert in_memory.location_of(3) == corpus.location_of(3)


def test_digest_depends_only_on_the_order_and_on_what_can_change_a_token(read):
    rows = [
        {"messages": [{"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": "b"}]} for n in range(3)
    ]
    two_turns = {"messages": [*rows[0]["messages"], *rows[1]["messages"]]}
    first_untrained = json.loads(json.dumps(two_turns).replace('"b"}', '"b", "train": false}', 1))
    digests = [
        read(digest_rows, **options).digest
        for digest_rows, options in [
            (rows, {}), (rows[::-1], {}), (rows[:2], {}), ([two_turns], {}), ([first_untrained], {}),
            ([{**two_turns, "tools": [TOOL]}], {}), ([{**two_turns, "tools": [{**TOOL, "description": "?"}]}], {}),
        ]
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert read([two_turns], train_on="last").digest == digests[4]
    assert read([{**row, "id": 3} for row in rows]).digest == digests[0]


def test_conversations_are_in_an_unlinked_file(read, tmp_path):
    first, second = read(build_rows(5)), read(build_rows(2))
    assert list(tmp_path.iterdir()) == []
    assert [len(list(examples)) for examples in (first, second)] == [5, 2]


KILLED_PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    from harness.types import Message
    from harness.data.reading.conversation import build_example
    from harness.data.reading.conversation_store import ConversationStore

    def rows():
        for number in range(20_000):
            yield build_example([Message("user", f"{number}"), Message("assistant", "b" * 100)], "x:1")
        names = []
        for file in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{file}"))
            except OSError:
                pass  # the descriptor of the folder itself
        print([name for name in names if name.startswith(sys.argv[1])], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    ConversationStore.write_examples(rows(), Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system does not list the open files of a process")
def test_killed_process_leaves_no_conversations_behind(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED_PROGRAM), str(tmp_path)]
    process = subprocess.run(command, timeout=120, check=False, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert str(tmp_path) in process.stdout, "the conversations were written there"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(read):
    def build_source(count):
        row = {"prompt": "x" * 500}
        return RecordingSource({**row, "completion": str(n)} for n in range(count))

    def peak(count):
        tracemalloc.start()
        corpus = read(build_source(count))
        for _ in corpus:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(2000)
    assert peak(8000) - peak(2000) < 6000 * 100  # 24 bytes a row in arrays that double as they grow; a row is 600


def test_folder_that_cannot_be_written_is_an_error(read, tmp_path):
    (tmp_path / "c").write_text("a file instead of a folder")
    with pytest.raises(HarnessError, match=r"c: cannot write the rows here: .*set HARNESS_CACHE to another folder"):
        conversation_store.ConversationStore.write_examples(ALL_FIELDS, tmp_path / "c")
    (line,) = error_lines(read, build_rows(2))
    assert "rejected.jsonl: cannot write the rows here" in line
    assert line.endswith('or name another folder in "output"')


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("buffered", [True, False])
def test_full_disk_is_an_error(read, tmp_path, monkeypatch, buffered):
    full = Path("/dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: full.open("wb", -1 if buffered else 0))
    (line,) = error_lines(read, build_rows(2))
    assert line.startswith(f"{tmp_path}: cannot write the rows here: No space left on device; free disk space")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_full_disk_is_an_error_for_invalid_rows(read, tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "rejected.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr("pathlib.Path.unlink", lambda path, missing_ok: None)
    (line,) = error_lines(read, [*build_rows(2), {}], rejected=0.9)
    assert "rejected.jsonl: cannot write the rows here: No space left on device" in line


# -- invalid rows -----------------------------------------------------------------------------------------------------

INVALID = InvalidRecord("", "is not JSON: Expecting value at column 1", "fix the line", "oh \ud83d")


def test_invalid_rows_are_named_and_written_and_are_an_error(read, tmp_path):
    rows = [
        *build_rows(2),
        INVALID,
        {"prompt": "a", "completion": " "},
        {"prompt": "\ud83d", "completion": "b", "n": datetime.date(2026, 1, 2)},
    ]
    lines = error_lines(read, rows)
    assert [line.partition(": ")[0] for line in lines] == ["x:3", "x:4", "x:5", "sources.x"]
    logged = [json.loads(line) for line in (tmp_path / "c" / "rejected.jsonl").read_text().splitlines()]
    assert logged[0] == {
        "place": "x:3", "reason": INVALID.what, "hint": "fix the line", "row": "oh \ud83d",
    }  # fmt: skip
    assert logged[1]["row"] == rows[3]
    assert logged[1]["reason"] == "has no response: it is blank"
    assert logged[2]["row"] == {"prompt": "\ud83d", "completion": "b", "n": "datetime.date(2026, 1, 2)"}


def test_first_five_invalid_rows_are_named_and_the_file_lists_all(read, tmp_path):
    lines = error_lines(read, [*build_rows(2), *[INVALID] * 8])
    assert len(lines) == 6
    assert (
        lines[-1]
        == f"sources.x: and 3 more invalid rows, of 10 rows; {tmp_path / 'c' / 'rejected.jsonl'} lists all of them; "
        'to drop them set "rejected": 0.8'
    )
    assert len((tmp_path / "c" / "rejected.jsonl").read_text().splitlines()) == 8


def test_share_of_invalid_rows_may_be_allowed_and_every_row_is_counted(read, tmp_path):
    rows = [*build_rows(6, lang="en"), *build_rows(3, lang="de"), {"prompt": "a", "lang": "en"}, INVALID]
    corpus = read(rows, rejected=0.25, filter={"lang": "en"})
    assert (corpus.rows_read, corpus.rows_filtered, corpus.rows_invalid, len(corpus)) == (11, 3, 2, 6)
    assert corpus.invalid_rows_file == tmp_path / "c" / "rejected.jsonl"
    assert corpus.warnings == (f"2 of 8 rows of 'x' are invalid and dropped; see {corpus.invalid_rows_file}",)
    line = error_lines(read, rows, rejected=0.24, filter={"lang": "en"})[-1]
    assert line.startswith("sources.x: 2 of 8 rows are invalid, more than the share 0.24 that 'rejected' allows; ")


def test_valid_rows_remove_an_earlier_file_of_invalid_rows(read, tmp_path):
    error_lines(read, [*build_rows(2), INVALID])
    corpus = read(build_rows(2))
    assert (corpus.rows_invalid, corpus.invalid_rows_file, corpus.warnings) == (0, None, ())
    assert not (tmp_path / "c" / "rejected.jsonl").exists()


def test_source_without_a_valid_row_is_an_error(read):
    assert error_lines(read, []) == ["sources.x: the data set holds no rows; add at least one row, or name other data"]
    assert error_lines(read, [INVALID], rejected=0.99)[0].startswith("x:1: is not JSON")


def test_text_of_an_invalid_row_is_written_up_to_a_length(read, tmp_path):
    read([*build_rows(2), dataclasses.replace(INVALID, raw="y" * 100_007)], rejected=0.9)
    (line,) = (tmp_path / "c" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == "y" * 100_000 + " … and 7 more characters"


def test_error_of_a_source_is_raised(read):
    class Strict(Source):
        def records(self):
            yield Record("x:1", build_rows(1)[0])
            raise HarnessError("x:2", "the question has no answer", "add a line with one")

    assert error_lines(read, Strict()) == ["x:2: the question has no answer; add a line with one"]


def test_source_that_yields_no_records_is_named(read):
    class Wrong(Source):
        def records(self):
            return iter([{"prompt": "a", "completion": "b"}])

    (line,) = error_lines(read, Wrong())
    assert line.endswith("Wrong, records: yielded a dict, not a Record or InvalidRecord, at index 0")


# -- head and filter --------------------------------------------------------------------------------------------------


def test_head_limits_the_rows_taken_from_the_source(read):
    source = RecordingSource(build_rows(50))
    corpus = read(source, head=7)
    assert (corpus.rows_read, len(corpus), source.yielded, source.closed) == (7, 7, 7, True)
    assert len(read(build_rows(3), head=7)) == 3


def test_source_is_closed_after_an_error(read, monkeypatch):
    monkeypatch.setattr(source_reader, "ROWS_FOR_DETECTION", 2)
    source = RecordingSource([*build_rows(9), 3])
    with pytest.raises(HarnessError):
        read(source, form="alpaca", columns={"instruction": "none"})
    assert source.closed


@pytest.mark.parametrize(
    ("allowed_values", "matching_rows"),
    [
        ({"a": 1}, [0, 1]),
        ({"a": [1, "1"]}, [0, 1, 2]),
        ({"a": True}, [3]),
        ({"a": None}, [4, 5]),
        ({"m.lang": "en"}, [0]),
        ({"m.lang": ["en", "de"], "a": 1}, [0, 1]),
        ({"m.x.y": 2}, [2]),
        ({"b.c": 3}, [3]),
        ({"a": [False, 0]}, []),
        ({"m": "en"}, []),
    ],
)
def test_filter_keeps_rows_by_the_values_of_their_columns(read, allowed_values, matching_rows):
    columns = [
        {"a": 1, "m": {"lang": "en"}}, {"a": 1.0, "m": {"lang": "de"}}, {"a": "1", "m": {"x": {"y": 2}}},
        {"a": True, "b.c": 3}, {"a": None, "m": None}, {"m": "x"},
    ]  # fmt: skip
    rows = [{**row, **values} for row, values in zip(build_rows(6), columns, strict=True)]
    if matching_rows:
        corpus = read(rows, filter=allowed_values)
        assert [row.location for row in corpus] == [f"x:{index + 1}" for index in matching_rows]
        assert corpus.rows_filtered == 6 - len(matching_rows)
    else:
        (line,) = error_lines(read, rows, filter=allowed_values)
        assert line.startswith("sources.x: its filter keeps none of 6 rows: x:1 has ")


def test_filter_uses_the_columns_of_the_data_before_renaming(read):
    rows = [{"q": f"question {n}", "completion": "b"} for n in range(3)]
    assert len(read(rows, columns={"prompt": "q"}, filter={"q": "question 1"})) == 1


# -- progress and warnings --------------------------------------------------------------------------------------------


def test_reading_reports_progress(read, monkeypatch):
    monkeypatch.setattr(source_reader, "PROGRESS_INTERVAL", 10)
    reported = []
    read(build_rows(25), progress=lambda *args: reported.append(args))
    assert reported == [("read", done, total, "x", "rows") for done, total in ((10, 0), (20, 0), (25, 25))]


def test_metadata_and_warnings_of_the_source_are_kept(read):
    class AnnotatedSource(RecordingSource):
        def metadata(self):
            return {"commit": f"after {self.yielded} rows"}

        def warnings(self):
            return ["it may change"]

    corpus = read(AnnotatedSource(build_rows(3)))
    assert corpus.metadata == {"commit": "after 3 rows"}
    assert corpus.warnings == ("it may change",)


# -- groups -----------------------------------------------------------------------------------------------------------


def test_rows_keep_the_columns_by_which_suites_group_them(tmp_path):
    rows = build_rows(3)
    for number, row in enumerate(rows):
        row |= {"document": f"d\t{number // 2}\n", "meta": {"customer": number}}
    corpus = read_corpus(
        RecordingSource(rows), DEFAULTS, "x", folder=tmp_path, group_columns=["document", "meta.customer"]
    )
    plain = read_corpus(RecordingSource(rows), DEFAULTS, "x", folder=tmp_path)
    assert [example.groups for example in corpus] == [
        (("document", "d\t0\n"), ("meta.customer", "0")),
        (("document", "d\t0\n"), ("meta.customer", "1")),
        (("document", "d\t1\n"), ("meta.customer", "2")),
    ]
    assert [corpus.location_of(index) for index in range(3)] == ["x:1", "x:2", "x:3"]
    assert [example.groups for example in plain] == [(), (), ()]
    assert (dict(corpus.unread_keys), dict(plain.unread_keys)) == ({}, {"document": 3, "meta": 3})
    assert corpus.digest == plain.digest, "groups are not part of what is trained"
    assert [example.id for example in corpus] == [example.id for example in plain]


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, " "])
def test_row_without_its_group_is_invalid(tmp_path, value):
    rows = [{**row, "document": "d"} for row in build_rows(3)]
    rows[1]["document"] = value
    with pytest.raises(HarnessError) as caught:
        read_corpus(RecordingSource(rows), DEFAULTS, "x", folder=tmp_path, group_columns=["document"])
    text = "\n".join(caught.value.lines())
    assert "x:2: has no 'document', a column by which a suite groups or slices its items" in text
    assert "name a column of the rows: prompt, completion, document" in text


# -- kept columns -----------------------------------------------------------------------------------------------------


def test_rows_have_the_columns_that_the_source_keeps(tmp_path):
    rows = build_rows(3)
    rows[0] |= {"rules": [{"type": "max_words", "value": 5}], "meta": {"level": 1.5}}
    rows[1] |= {"rules": [], "other": "x"}
    kept = read_corpus(
        RecordingSource(rows), {**DEFAULTS, "keep": ["rules", "meta.level"]}, "x", folder=tmp_path, group_columns=()
    )
    plain = read_corpus(RecordingSource(rows), DEFAULTS, "x", folder=tmp_path)
    assert [example.data for example in kept] == [
        {"rules": [{"type": "max_words", "value": 5}], "meta.level": 1.5},
        {"rules": [], "meta.level": None},
        {"rules": None, "meta.level": None},
    ]
    assert [example.data for example in plain] == [{}, {}, {}]
    assert [kept.location_of(index) for index in range(3)] == ["x:1", "x:2", "x:3"]
    assert dict(kept.unread_keys) == {"other": 1}
    assert kept.digest == plain.digest, "kept columns are not part of what is trained"
    assert [example.id for example in kept] == [example.id for example in plain]


def test_kept_columns_and_groups_are_independent(tmp_path):
    rows = [{**row, "document": "d", "topic": "tea"} for row in build_rows(1)]
    (example,) = read_corpus(
        RecordingSource(rows), {**DEFAULTS, "keep": ["topic"]}, "x", folder=tmp_path, group_columns=["document"]
    )
    assert (example.groups, example.data) == ((("document", "d"),), {"topic": "tea"})


def test_a_kept_column_may_be_null_in_every_row(tmp_path):
    rows = [{**row, "rules": None, "meta": {"level": None}} for row in build_rows(2)]
    kept = read_corpus(RecordingSource(rows), {**DEFAULTS, "keep": ["rules", "meta.level"]}, "x", folder=tmp_path)
    assert [example.data for example in kept] == [{"rules": None, "meta.level": None}] * 2


def test_a_kept_column_that_no_row_has_is_an_error(tmp_path):
    with pytest.raises(HarnessError) as caught:
        read_corpus(RecordingSource(build_rows(2)), {**DEFAULTS, "keep": ["rules"]}, "x", folder=tmp_path)
    assert str(caught.value) == (
        "sources.x: 'keep' names rules, which no row has; name columns of the rows: prompt, completion"
    )


@pytest.mark.parametrize("value", [b"bytes", float("nan")])
def test_a_kept_value_that_json_cannot_hold_is_an_invalid_row(tmp_path, value):
    rows = [{**row, "rules": "a"} for row in build_rows(2)]
    rows[1]["rules"] = value
    with pytest.raises(HarnessError, match=r"x:2: has a 'rules' that is not a JSON value, but 'keep' names it"):
        read_corpus(RecordingSource(rows), {**DEFAULTS, "keep": ["rules"]}, "x", folder=tmp_path)
