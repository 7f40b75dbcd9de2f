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

from harness.data.reading import conversation_store, source_reader
from harness.data.reading.conversation import build_example, prompt_hash
from harness.data.reading.corpus import Corpus, read_corpus, read_examples
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.spec_keys import data
from harness.types import InvalidRecord, Message, Record, ToolCall

DEFAULTS = {key: option["default"] for key, option in data.SOURCE_KEYS.items()}


class Rows(Source):
    """Rows of `prompt` and `completion`, or whatever is given, at places by number."""

    def __init__(self, rows):
        self.rows, self.given, self.closed = rows, 0, False

    def records(self):
        try:
            for number, row in enumerate(self.rows, 1):
                self.given += 1
                yield (
                    dataclasses.replace(row, location=f"x:{number}")
                    if isinstance(row, InvalidRecord)
                    else Record(f"x:{number}", row)
                )
        finally:
            self.closed = True


def asks(count, **more):
    return [{"prompt": f"question {n}", "completion": f"answer {n}", **more} for n in range(count)]


@pytest.fixture
def corpus(tmp_path):
    def corpus(rows, folder="c", progress=None, **options):
        source = rows if isinstance(rows, Source) else Rows(rows)
        more = {"progress": progress} if progress else {}
        bad = tmp_path / folder / "rejected.jsonl"
        return read_corpus(source, {**DEFAULTS, **options}, "x", folder=tmp_path, invalid_rows_file=bad, **more)

    return corpus


def refused(corpus, rows, **options):
    with pytest.raises(HarnessError) as caught:
        corpus(rows, **options)
    return caught.value.lines()


# -- on disk and back -------------------------------------------------------------------------------------------------

TOOL = {"name": "add", "description": "Adds – ja.", "parameters": {"type": "object", "properties": {"a": {}}}}
EVERYTHING = [
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
def spooled(tmp_path):
    return conversation_store.ConversationStore.write_examples(EVERYTHING, tmp_path)[0]


def test_every_part_of_an_example_comes_back_from_disk(spooled):
    assert list(spooled) == EVERYTHING
    assert [spooled[index] for index in (0, 1, -1)] == EVERYTHING
    assert spooled[1:] == EVERYTHING[1:]
    assert [spooled.location_of(index) for index in range(3)] == [row.location for row in EVERYTHING]
    with pytest.raises(IndexError):
        spooled[3]


def test_a_view_gives_its_rows_in_the_order_asked_for(corpus, monkeypatch):
    made = corpus(asks(300))
    monkeypatch.setattr("harness.data.reading.conversation_store.ROWS_PER_READ", 7)
    for indices in ([], [5], list(range(300)), list(range(0, 300, 3)), [299, 0, 0, 150], [*range(40, 60), 3]):
        view = made.select(np.array(indices, np.int64))
        wanted = [f"question {index}" for index in indices]
        assert [row.messages[0].content for row in view] == wanted
        assert [view[at].messages[0].content for at in range(len(view))] == wanted
        assert [view.location_of(at) for at in range(len(view))] == [f"x:{index + 1}" for index in indices]
        assert view.content_hashes.tolist() == [int(made[index].id, 16) for index in indices]
        assert [row.id for row in view[1:].select(np.arange(len(indices[1:])))] == [
            made[index].id for index in indices[1:]
        ]


def test_a_corpus_has_the_hashes_of_its_rows_in_order(corpus):
    made = corpus(asks(20))
    assert made.content_hashes.dtype == made.prompt_hashes.dtype == np.uint64
    assert [f"{key:016x}" for key in made.content_hashes.tolist()] == [row.id for row in made]
    assert [f"{key:016x}" for key in made.prompt_hashes.tolist()] == [prompt_hash(row) for row in made]
    assert (made.row_format, made.rows_read, len(made), made.name) == ("prompt_completion", 20, 20, "x")


def test_a_corpus_in_memory_is_the_same_as_on_disk(corpus):
    made = corpus(asks(9))
    held = Corpus.from_examples(read_examples(Rows(asks(9)), DEFAULTS, "x"), "x")
    assert list(held) == list(made)
    assert held.digest == made.digest
    assert held.content_hashes.tolist() == made.content_hashes.tolist()
    assert held.prompt_hashes.tolist() == made.prompt_hashes.tolist()
    assert list(held.select(np.array([3, 1]))) == list(made.select(np.array([3, 1])))
    assert held.location_of(3) == made.location_of(3)


def test_the_digest_changes_with_whatever_can_change_a_token_and_with_the_order_and_with_nothing_else(corpus):
    rows = [
        {"messages": [{"role": "user", "content": f"a{n}"}, {"role": "assistant", "content": "b"}]} for n in range(3)
    ]
    two = {"messages": [*rows[0]["messages"], *rows[1]["messages"]]}
    one_untrained = json.loads(json.dumps(two).replace('"b"}', '"b", "train": false}', 1))
    digests = [
        corpus(given, **options).digest
        for given, options in [
            (rows, {}), (rows[::-1], {}), (rows[:2], {}), ([two], {}), ([one_untrained], {}),
            ([{**two, "tools": [TOOL]}], {}), ([{**two, "tools": [{**TOOL, "description": "?"}]}], {}),
        ]
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert corpus([two], train_on="last").digest == digests[4]
    assert corpus([{**row, "id": 3} for row in rows]).digest == digests[0]


def test_conversations_leave_no_name_on_the_disk_while_they_are_used(corpus, tmp_path):
    first, second = corpus(asks(5)), corpus(asks(2))
    assert list(tmp_path.iterdir()) == []
    assert [len(list(one)) for one in (first, second)] == [5, 2]


KILLED = """
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
                pass  # the folder's own
        print([name for name in names if name.startswith(sys.argv[1])], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    ConversationStore.write_examples(rows(), Path(sys.argv[1]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system does not tell what a process has open")
def test_a_process_that_is_killed_leaves_no_conversations_behind(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    ended = subprocess.run(command, timeout=120, check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert str(tmp_path) in ended.stdout, "it wrote there"
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_rows(corpus):
    def many(count):
        row = {"prompt": "x" * 500}
        return Rows({**row, "completion": str(n)} for n in range(count))

    def peak(count):
        tracemalloc.start()
        made = corpus(many(count))
        for _ in made:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(2000)
    assert peak(8000) - peak(2000) < 6000 * 100  # 24 bytes a row in arrays that double as they grow; a row is 600


def test_a_folder_that_cannot_be_written_is_told(corpus, tmp_path):
    (tmp_path / "c").write_text("a file where a folder is to be")
    with pytest.raises(HarnessError, match=r"c: the rows read cannot be written there: .*set HARNESS_CACHE to another"):
        conversation_store.ConversationStore.write_examples(EVERYTHING, tmp_path / "c")
    (line,) = refused(corpus, asks(2))
    assert "rejected.jsonl: the rows read cannot be written there" in line
    assert line.endswith('or name another folder in "output"')


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_is_told(corpus, tmp_path, monkeypatch, buffered):
    full = Path("/dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: full.open("wb", -1 if buffered else 0))
    (line,) = refused(corpus, asks(2))
    assert line.startswith(f"{tmp_path}: the rows read cannot be written there: No space left on device; free space")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_is_told_of_bad_rows_as_well(corpus, tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "rejected.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr("pathlib.Path.unlink", lambda path, missing_ok: None)
    (line,) = refused(corpus, [*asks(2), {}], rejected=0.9)
    assert "rejected.jsonl: the rows read cannot be written there: No space left on device" in line


# -- bad rows ---------------------------------------------------------------------------------------------------------

BAD = InvalidRecord("", "is not JSON: Expecting value at column 1", "mend the line", "oh \ud83d")


def test_bad_rows_are_named_and_written_down_whole_and_stop_the_run(corpus, tmp_path):
    rows = [
        *asks(2),
        BAD,
        {"prompt": "a", "completion": " "},
        {"prompt": "\ud83d", "completion": "b", "n": datetime.date(2026, 1, 2)},
    ]
    lines = refused(corpus, rows)
    assert [line.partition(": ")[0] for line in lines] == ["x:3", "x:4", "x:5"]
    kept = [json.loads(line) for line in (tmp_path / "c" / "rejected.jsonl").read_text().splitlines()]
    assert kept[0] == {
        "place": "x:3", "reason": BAD.what, "hint": "mend the line", "row": "oh \ud83d",
    }  # fmt: skip
    assert kept[1]["row"] == rows[3]
    assert kept[1]["reason"] == "has no response: it is blank"
    assert kept[2]["row"] == {"prompt": "\ud83d", "completion": "b", "n": "datetime.date(2026, 1, 2)"}


def test_the_first_five_are_named_and_the_file_names_them_all(corpus, tmp_path):
    lines = refused(corpus, [*asks(2), *[BAD] * 8])
    assert len(lines) == 6
    assert (
        lines[-1] == f"sources.x: and 3 more bad rows, of 10 rows; {tmp_path / 'c' / 'rejected.jsonl'} names them all"
    )
    assert len((tmp_path / "c" / "rejected.jsonl").read_text().splitlines()) == 8


def test_a_share_of_bad_rows_may_be_allowed_and_every_row_is_accounted_for(corpus, tmp_path):
    rows = [*asks(6, lang="en"), *asks(3, lang="de"), {"prompt": "a", "lang": "en"}, BAD]
    made = corpus(rows, rejected=0.25, filter={"lang": "en"})
    assert (made.rows_read, made.rows_filtered, made.rows_invalid, len(made)) == (11, 3, 2, 6)
    assert made.invalid_rows_file == tmp_path / "c" / "rejected.jsonl"
    assert made.warnings == (f"2 of 8 rows of 'x' are bad and left out; see {made.invalid_rows_file}",)
    line = refused(corpus, rows, rejected=0.24, filter={"lang": "en"})[-1]
    assert line.startswith("sources.x: 2 of 8 rows are bad, more than the share of 0.24 that 'rejected' allows; ")


def test_good_rows_leave_no_file_behind_not_even_an_earlier_one(corpus, tmp_path):
    refused(corpus, [*asks(2), BAD])
    made = corpus(asks(2))
    assert (made.rows_invalid, made.invalid_rows_file, made.warnings) == (0, None, ())
    assert not (tmp_path / "c" / "rejected.jsonl").exists()


def test_without_a_good_row_there_is_no_corpus(corpus):
    assert refused(corpus, []) == ["sources.x: the data set holds no rows; give it at least one"]
    assert refused(corpus, [BAD], rejected=0.99)[0].startswith("x:1: is not JSON")


def test_the_text_of_a_bad_row_is_written_down_up_to_a_length(corpus, tmp_path):
    corpus([*asks(2), dataclasses.replace(BAD, raw="y" * 100_007)], rejected=0.9)
    (line,) = (tmp_path / "c" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == "y" * 100_000 + " … and 7 more characters"


def test_a_source_that_raises_at_its_first_bad_row_stops_the_run_as_ever(corpus):
    class Strict(Source):
        def records(self):
            yield Record("x:1", asks(1)[0])
            raise HarnessError("x:2", "the question has no answer", "add a line with one")

    assert refused(corpus, Strict()) == ["x:2: the question has no answer; add a line with one"]


def test_a_source_that_yields_something_else_is_named(corpus):
    class Wrong(Source):
        def records(self):
            return iter([{"prompt": "a", "completion": "b"}])

    assert refused(corpus, Wrong())[0].startswith("sources.x: its source yields a dict, where a Record is due")


# -- head and filter --------------------------------------------------------------------------------------------------


def test_no_more_rows_are_asked_for_than_head_says(corpus):
    source = Rows(asks(50))
    made = corpus(source, head=7)
    assert (made.rows_read, len(made), source.given, source.closed) == (7, 7, 7, True)
    assert len(corpus(asks(3), head=7)) == 3


def test_a_source_is_closed_when_a_row_stops_the_run(corpus, monkeypatch):
    monkeypatch.setattr(source_reader, "ROWS_FOR_DETECTION", 2)
    source = Rows([*asks(9), 3])
    with pytest.raises(HarnessError):
        corpus(source, form="alpaca", columns={"instruction": "none"})
    assert source.closed


@pytest.mark.parametrize(
    ("wanted", "kept"),
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
def test_rows_are_kept_by_the_values_of_their_columns(corpus, wanted, kept):
    facts = [
        {"a": 1, "m": {"lang": "en"}}, {"a": 1.0, "m": {"lang": "de"}}, {"a": "1", "m": {"x": {"y": 2}}},
        {"a": True, "b.c": 3}, {"a": None, "m": None}, {"m": "x"},
    ]  # fmt: skip
    rows = [{**row, **fact} for row, fact in zip(asks(6), facts, strict=True)]
    if kept:
        made = corpus(rows, filter=wanted)
        assert [row.location for row in made] == [f"x:{index + 1}" for index in kept]
        assert made.rows_filtered == 6 - len(kept)
    else:
        (line,) = refused(corpus, rows, filter=wanted)
        assert line.startswith("sources.x: its filter keeps none of 6 rows: x:1 has ")


def test_a_filter_looks_at_the_datas_columns_before_they_are_renamed(corpus):
    rows = [{"q": f"question {n}", "completion": "b"} for n in range(3)]
    assert len(corpus(rows, columns={"prompt": "q"}, filter={"q": "question 1"})) == 1


# -- what is told -----------------------------------------------------------------------------------------------------


def test_reading_tells_how_far_it_is(corpus, monkeypatch):
    monkeypatch.setattr(source_reader, "PROGRESS_INTERVAL", 10)
    told = []
    corpus(asks(25), progress=lambda *args: told.append(args))
    assert told == [("read", done, total, "x", "rows") for done, total in ((10, 0), (20, 0), (25, 25))]


def test_what_the_source_says_of_its_data_is_kept(corpus):
    class Telling(Rows):
        def metadata(self):
            return {"commit": f"after {self.given} rows"}

        def warnings(self):
            return ["it may move"]

    made = corpus(Telling(asks(3)))
    assert made.metadata == {"commit": "after 3 rows"}
    assert made.warnings == ("it may move",)
