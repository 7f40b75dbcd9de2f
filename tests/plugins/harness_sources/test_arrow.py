import json
import struct
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow
import pytest
from harness_sources.arrow import ArrowSource, ParquetSource

from harness import HarnessError

ROWS = [{"q": f"question {n}", "calls": [{"x": 1}] if n % 2 else [{"y": "two"}]} for n in range(5)]


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(path="saved", split=None):
    return list(ArrowSource(path, {}, split).records())


def test_a_saved_dataset_is_read_in_order_from_all_its_files():
    datasets.Dataset.from_list(ROWS).select([4, 3, 2, 1, 0]).save_to_disk("saved", num_shards=2)
    files = [part["filename"] for part in json.loads(Path("saved/state.json").read_text())["_data_files"]]
    assert len(files) == 2
    assert [record.data for record in read()] == ROWS[::-1]
    assert [record.location for record in read()] == [
        *(f"saved/{files[0]}:[{n}]" for n in range(3)), *(f"saved/{files[1]}:[{n}]" for n in range(2)),
    ]  # fmt: skip
    assert [record.data for record in read([f"saved/{files[1]}"])] == ROWS[1::-1]


def test_a_folder_with_splits_requires_the_option_split():
    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    datasets.DatasetDict(parts).save_to_disk("saved")
    assert [record.data for record in read(split="test")] == ROWS[:2]
    with pytest.raises(
        HarnessError, match=r'saved: has the splits train, test; name one of them, e.g. "split": "train"'
    ):
        read()
    with pytest.raises(HarnessError, match="has the splits train, test and no 'dev'"):
        read(split="dev")


def test_arrows_file_format_is_read_too():
    table = pyarrow.Table.from_pylist(ROWS[:3])
    with pyarrow.OSFile("x.arrow", "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert [(record.location, record.data) for record in read("x.arrow")] == [
        (f"x.arrow:[{n}]", row) for n, row in enumerate(ROWS[:3])
    ]


def test_other_files_and_folders_are_refused(tmp_path):
    (tmp_path / "x.arrow").write_text("no arrow file")
    with pytest.raises(HarnessError, match=r"x.arrow: is not a readable Arrow file"):
        read("x.arrow")
    with pytest.raises(HarnessError, match=r"none.arrow: there is no such file"):
        read("none.arrow")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError, match="empty: is not a folder written by datasets' save_to_disk"):
        read("empty")
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    with pytest.raises(HarnessError, match="has one dataset and no split 'test'"):
        read(split="test")


MIXED = [
    {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes\nit is"}],
        "tools": [{"name": "f", "parameters": {"default": 'a "b"', "enum": [3]}}],
        "output": "one",
        "calls": [[{"arguments": {"x": 1}}]],
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "?"}]},
            {"role": "assistant", "content": "one"},
        ],
        "tools": [{"name": "g", "parameters": {"default": 3, "enum": [1, "two"]}}],
        "output": {"answer": None},
        "calls": [[{"arguments": {"x": ["two"]}}], []],
    },
    {"messages": None, "tools": [], "output": None, "calls": [[]]},
]


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_values_of_mixed_types_that_datasets_stores_as_json_are_parsed(file_format):
    dataset = datasets.Dataset.from_list(MIXED, on_mixed_types="use_json")
    assert any("Json" in str(feature) for feature in dataset.features.values())
    dataset.save_to_disk("saved")
    dataset.to_parquet("x.parquet")
    rows = [record.data for record in (read() if file_format == "arrow" else ParquetSource("x.parquet", {}).records())]
    assert rows == list(datasets.load_from_disk("saved"))
    assert rows == MIXED


def test_a_json_value_that_is_not_json_is_an_invalid_row():
    storage = pyarrow.array(['"yes"', "no"], pyarrow.string())
    table = pyarrow.table({"x": pyarrow.ExtensionArray.from_storage(pyarrow.json_(), storage)})
    with pyarrow.OSFile("x.arrow", "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    valid, invalid = read("x.arrow")
    assert valid.data == {"x": "yes"}
    assert (invalid.location, invalid.what.partition(":")[0]) == (
        "x.arrow:[1]", "has a value of the type JSON that is not JSON",
    )  # fmt: skip


def _write(column, before=b"", after=b""):
    """Write a file of one column with some of its bytes, such as its offsets, replaced."""
    batch = pyarrow.record_batch({"q": column})
    with pyarrow.OSFile("x.arrow", "wb") as file, pyarrow.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    raw = Path("x.arrow").read_bytes()
    assert not before or raw.count(before) == 1
    Path("x.arrow").write_bytes(raw.replace(before, after) if before else raw)


def _offsets(*values):
    return struct.pack(f"<{len(values)}i", *values)


@pytest.mark.parametrize("offsets", [(0, 301, 1 << 30), (0, 1 << 30, 603), (0, 301, 2), (-8, 301, 603)])
@pytest.mark.parametrize(
    "column", [pyarrow.array(["a" * 301, "b" * 302]), pyarrow.array([[7] * 301, [8] * 302])], ids=["text", "list"]
)
def test_offsets_outside_the_data_are_damage(column, offsets):
    _write(column, _offsets(0, 301, 603), _offsets(*offsets))
    with pytest.raises(HarnessError, match=r"^x.arrow: is not a readable Arrow file: .*; write it again"):
        read("x.arrow")


def test_an_index_outside_the_dictionary_is_damage():
    _write(pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 9]), pyarrow.array(["a", "b"]), safe=False))
    with pytest.raises(HarnessError, match=r"^x.arrow: is not a readable Arrow file: .*; write it again"):
        read("x.arrow")


def test_text_that_is_not_utf8_is_an_invalid_row():
    _write(pyarrow.array(["abc", "def", "ghi"]), b"abcdefghi", b"abc\xff\xfe\xfdghi")
    rows = read("x.arrow")
    assert [row.location for row in rows] == ["x.arrow:[0]", "x.arrow:[1]", "x.arrow:[2]"]
    assert [rows[0].data, rows[2].data] == [{"q": "abc"}, {"q": "ghi"}]
    assert rows[1].what.startswith("has a value that cannot be read: ")


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([["abc"], ["def"], ["ghi"]]),
        pyarrow.array([[{"text": "abc"}], [{"text": "def"}], [{"text": "ghi"}]]),
        pyarrow.array([{"text": "abc"}, {"text": "def"}, {"text": "ghi"}]),
        pyarrow.array(["abc", "def", "ghi"], pyarrow.large_string()),
        pyarrow.array(["abc", "def", "ghi"]).dictionary_encode(),
    ],
    ids=["list", "list of structs", "struct", "large text", "dictionary"],
)
def test_text_that_is_not_utf8_is_one_invalid_row_in_any_column(column):
    _write(column, b"abcdefghi", b"abc\xff\xfe\xfdghi")
    assert [hasattr(row, "what") for row in read("x.arrow")] == [False, True, False]


def test_a_date_that_is_no_whole_day_is_read():
    _write(pyarrow.array([1000, 86_400_000]).view(pyarrow.date64()))
    assert len(read("x.arrow")) == 2


_STRUCT = pyarrow.struct([("text", pyarrow.string()), ("more", pyarrow.map_(pyarrow.string(), pyarrow.string()))])
_DICTIONARY = pyarrow.dictionary(pyarrow.int8(), pyarrow.string())


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.nulls(2),
        pyarrow.array([True, None]),
        pyarrow.array([Decimal("1.2"), None]),
        pyarrow.array([1, None], pyarrow.time32("s")),
        pyarrow.array([1, None], pyarrow.time64("us")),
        pyarrow.array([1, None], pyarrow.timestamp("us", "UTC")),
        pyarrow.array([["a"], None], pyarrow.large_list(pyarrow.string())),
        pyarrow.array([["a"], None], pyarrow.list_view(pyarrow.string())),
        pyarrow.array([["a"], None], pyarrow.list_(pyarrow.string(), 1)),
        pyarrow.array([["a"], None], pyarrow.list_(_DICTIONARY)),
        pyarrow.array([{"text": "a", "more": [("k", "v")]}, None], _STRUCT),
        pyarrow.array(["a", None], pyarrow.string_view()),
        pyarrow.array(["a", None], _DICTIONARY),
        pyarrow.nulls(2, _DICTIONARY),
        pyarrow.array(["{}", None], pyarrow.json_()),
        pyarrow.array([b"0" * 16, None], pyarrow.uuid()),
        pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([1, 2], pyarrow.int32()), pyarrow.array(["a", None])),
    ],
    ids=lambda column: str(column.type),
)
def test_undamaged_columns_of_every_kind_are_read(column):
    _write(column)
    first, second = read("x.arrow")
    assert second.data == {"q": None}
    assert first.location == "x.arrow:[0]"
