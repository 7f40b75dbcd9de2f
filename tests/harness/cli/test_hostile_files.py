"""Malformed and unusual data files are read correctly, or rejected in one clear line with exit code 2.

Every test runs the command line; the tests of each source cover its messages in detail.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import re
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from harness.cli import main

ROWS = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(3)]
LINES = [json.dumps(row).encode() for row in ROWS]
JSONL = b"\n".join(LINES) + b"\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A model folder with a tokenizer and empty weights; no command here loads weights."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    return folder


@pytest.fixture
def check_source(tmp_path, monkeypatch, capsys, model):
    """Run `harness check` on a spec with one source; return the number of rows used, or the one error line.

    The line is returned without its location in the spec.
    """
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def check_source(kind, path="data", **options):
        document = {
            "name": "hostile",
            "model": {"path": str(model)},
            "template": "chatml",
            "sources": {"data": {kind: {"path": path, **options}}},
            "mode": {"general": {"sources": ["data"]}},
            "train": {"max_length": 256},
        }
        (tmp_path / "spec.json").write_text(json.dumps(document))
        code = main.main(["check", "spec.json", "--json"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        report = json.loads(captured.out)
        if code == 0:
            return report["sources"]["data"]["used"]
        assert code == 2
        (line,) = report["failures"]
        assert captured.err.splitlines()[-1].startswith("harness: ")
        assert not any(ord(character) < 32 for character in captured.err.replace("\n", ""))
        assert len(line) < 600
        assert "; " in line, "the line has a remedy"
        return re.sub(r"^spec\.json:\d+:\d+ (sources\.data\.\w+\.path: )?", "", line)

    return check_source


def add_row(row):
    return b"\n".join([*LINES, row if isinstance(row, bytes) else json.dumps(row).encode()]) + b"\n"


READABLE = {
    "a byte order mark": (codecs.BOM_UTF8 + JSONL, 3),
    "two files with byte order marks, put into one": (
        codecs.BOM_UTF8 + LINES[0] + b"\n" + codecs.BOM_UTF8 + LINES[1], 2
    ),
    "a byte order mark on a line by itself": (codecs.BOM_UTF8 + b"\n" + JSONL, 3),
    "line ends of Windows": (JSONL.replace(b"\n", b"\r\n"), 3),
    "no line end at the end, and blank lines": (b"\n \t\n" + JSONL.rstrip() + b"\n\n" + b" ", 3),
    "a NUL as an escape": (add_row({"instruction": "a\0b?", "output": "c\0."}), 4),
    "separators of Unicode inside of rows": (
        add_row('{"instruction": "a\u2028b\u2029c\u0085d", "output": "e\\u001cf"}'.encode()), 4
    ),
    "other columns of every kind": (
        add_row({**ROWS[0], "output": "Other.", "meta": {"x": [1, None, {"y": 2.5}]}, "": 1}), 4
    ),
    "nested as deep as the limit": (
        add_row({**ROWS[0], "output": "Other.", "meta": json.loads("[" * 99 + "]" * 99)}),
        4,
    ),
    "a line of a megabyte": (add_row({"instruction": "Say it.", "output": "long " * 200_000}), 4),
    "a gzip file of two parts": (gzip.compress(LINES[0] + b"\n") + gzip.compress(LINES[1]), 2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", READABLE)
def test_unusual_files_are_read(name, check_source, tmp_path):
    content, rows = READABLE[name]
    (tmp_path / "data").write_bytes(content)
    assert check_source("jsonl") == rows


DEEP_JSON = b'{"a":' * 3000 + b"1" + b"}" * 3000
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
UNREADABLE = {
    "an empty file": (b"", "data: the file has no rows"),
    "a file of nothing but a byte order mark": (codecs.BOM_UTF8, "data: the file has no rows"),
    "line ends of old Macs": (JSONL.replace(b"\n", b"\r"), "data:1: is not JSON: Extra data"),
    "a NUL as it is": (add_row(b'{"instruction": "a\0", "output": "b"}'), "data:4: is not JSON: Invalid control"),
    "a file of NULs": (bytes(1000), "data:1: is not JSON"),
    "a megabyte that is not JSON": (add_row(b"x" * 1_000_000), "data:4: is not JSON"),
    "nested too deep": (add_row(DEEP_JSON), "data:4: cannot be read: brackets are nested more than 100 deep"),
    "nested one level too deep": (
        add_row({**ROWS[0], "meta": json.loads("[" * 100 + "]" * 100)}),
        "data:4: cannot be read: brackets are nested",
    ),
    "a text of a call that is nested too deep": (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": DEEP_JSON.decode()}]},
                ]
            }
        ).encode(),
        "data:1: has text in messages[1].tool_calls[0].arguments that cannot be read: brackets are nested",
    ),
    "a call nested too deep": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"name": "f", '
        b'"arguments": ' + DEEP_JSON[: 5 * 80] + b"1" + b"}" * 80 + b"}]}]}",
        "data:1: is nested deeper than 64 levels in messages[1].tool_calls[0].arguments",
    ),
    "rows of several forms": (
        add_row({"messages": MESSAGES}),
        "sources.data: its rows have several row formats: data:1 is alpaca, data:4 is messages",
    ),
    "a number as content": (add_row({"instruction": "a", "output": 5}), "data:4: has the value 5 in 'output', not"),
    "NaN as content": (
        add_row(b'{"instruction": NaN, "output": "b"}'), "data:4: has an empty cell in 'instruction': the value is NaN"
    ),
    "an array as content": (add_row({"instruction": ["a"], "output": "b"}), "data:4: has an array in 'instruction'"),
    "true as a row": (add_row(b"true"), "data:4: is the value true, not an object"),
    "a number of 5,000 digits": (add_row(b'{"instruction": ' + b"1" * 5000 + b"}"), "data:4: has an integer"),
    "a key twice": (
        add_row(b'{"instruction": "a", "output": "b", "output": "c"}'), "data:4: names the key 'output' twice in one"
    ),
    "not UTF-8": (add_row(b'{"instruction": "\xe9", "output": "b"}'), "data:4: is not UTF-8: byte 18 is 0xe9"),
    "half of a surrogate pair": (
        add_row(b'{"instruction": "\\ud83d", "output": "b"}'), "data:4: has half of a surrogate pair"
    ),
    "UTF-16": (JSONL.decode().encode("utf-16"), "data: is UTF-16 or UTF-32, by its byte order mark"),
    "UTF-16, the other way round": (
        codecs.BOM_UTF16_BE + JSONL.decode().encode("utf-16-be"), "data: is UTF-16 or UTF-32, by"
    ),
    "keys that steer a terminal": (
        json.dumps({"\x1b[31m\n\u202e": 1, **{f"key {n}": n for n in range(5000)}}).encode(),
        "sources.data: its row format is unknown: data:1 has the keys ␛[31m \\u202e, key 0, key 1",
    ),
    "a key of a megabyte": (json.dumps({"k" * 1_000_000: 1}).encode(), "sources.data: its row format is unknown"),
    "a role that steers a terminal": (
        json.dumps({"messages": [{"role": "\x1b]0;x\x07", "content": "a"}]}).encode(), "data:1: has the unknown role"
    ),
    "gzip, cut off": (gzip.compress(JSONL * 99)[:60], "data: is truncated: its compressed data has no end"),
    "gzip, damaged at the end": (gzip.compress(JSONL)[:-6] + b"??????", "data: cannot be read: CRC check failed"),
    "gzip in name alone": (b"\x1f\x8b" + JSONL, "data: cannot be read: "),
    "xz": (lzma.compress(JSONL), "data: is compressed with xz, which is not supported"),
    "bzip2": (b"BZh91AY&SY" + bytes(20), "data: is compressed with bzip2, which is not supported"),
    "a Parquet file": (b"PAR1\x15\x04" + bytes(20), "data: is a Parquet file, not a text file"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_jsonl_is_rejected_in_one_line(name, check_source, tmp_path):
    content, line = UNREADABLE[name]
    (tmp_path / "data").write_bytes(content)
    assert check_source("jsonl").startswith(line)


def zipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "data", "w") as archive:
        archive.writestr("x.jsonl", JSONL)


def arrow_of_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "state.json").write_text('{"_data_files": [3, {"filename": "../../etc/passwd"}]}')


def loop(tmp_path):
    (tmp_path / "data").symlink_to(tmp_path / "data")


def of_bad_text(tmp_path):
    offsets = pyarrow.array([0, 1, 2], pyarrow.int32()).buffers()[1]
    bad = pyarrow.Array.from_buffers(pyarrow.utf8(), 2, [None, offsets, pyarrow.py_buffer(b"\xffa")])
    parquet.write_table(pyarrow.table({"prompt": bad, "completion": ["a", "b"]}), tmp_path / "data")


def of_two_columns(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "completion", "prompt"])
    parquet.write_table(table, tmp_path / "data")


def of_numbers(tmp_path):
    parquet.write_table(pyarrow.table({"prompt": [1, 2], "completion": ["a", "b"]}).slice(0, 1), tmp_path / "data")


def folder(tmp_path):
    (tmp_path / "data").mkdir()


def make_writer(content):
    return lambda tmp_path: (tmp_path / "data").write_bytes(content)


UNREADABLE_BY_SOURCE = [
    ("jsonl", zipped, "data: is a zip archive, not a text file"),
    ("jsonl", loop, "data: cannot be read: "),
    ("json", make_writer(b""), "data: the file has no rows"),
    ("json", make_writer(b"[]"), "data: the file has no rows"),
    ("json", make_writer(b"[" + b",".join(LINES)), "data:1:"),
    ("json", make_writer(b'[{"a": 1, "a": 2}]'), "data:[0]: names the key 'a' twice in one object"),
    ("json", make_writer(b'{"rows": [{"a": 1, "a": 2}]}'), "data: names the key 'a' twice in one object"),
    ("json", make_writer(b'{"a": [], "b": []}'), "data: is an object with 2 arrays"),
    ("json", make_writer(b"[" * 100_000), "data:1:102: cannot be read: brackets are nested more than 100 deep"),
    ("json", make_writer(b"[" + DEEP_JSON + b"]"), "data:1:502: cannot be read: brackets are nested more than"),
    ("json", make_writer(b"3"), "data: is not an array of objects"),
    ("json", make_writer(b"[1]"), "data:[0]: is 1, not an object"),
    ("json", make_writer(JSONL.decode().encode("utf-16")), "data: is UTF-16 or UTF-32"),
    ("csv", make_writer(b""), "data: the file has no rows"),
    ("csv", make_writer(b"\nprompt,completion\na,b\n"), "data:1: the first line is blank"),
    ("csv", make_writer(b"prompt,completion\ra,b\r"), "data:1: is not CSV: new-line character seen in unquoted field"),
    ("csv", make_writer(b'prompt,completion\n"a,b\n'), "data:2: is not CSV: unexpected end of data"),
    ("csv", make_writer(b"prompt,completion\na,b,c\n"), "data:2: has 3 fields, but the header names 2"),
    ("csv", make_writer(b"prompt,prompt\na,b\n"), "data:1: the header names the column 'prompt' twice"),
    ("csv", make_writer(b"prompt,completion\na,\xff\n"), "data:2: is not UTF-8"),
    ("text", make_writer("a\n\u3000\u2003\n".encode()), "data:2: has a text of white space only"),
    ("text", make_writer(b"a\nb\xff\n"), "data:2: is not UTF-8: byte 2 is 0xff"),
    ("parquet", make_writer(b""), "data: is not a readable Parquet file"),
    ("parquet", make_writer(JSONL), "data: is not a readable Parquet file"),
    ("parquet", of_bad_text, "data:[0]: has a value that cannot be read: 'utf-8' codec can't decode byte 0xff"),
    ("parquet", of_two_columns, "data: has two columns called 'prompt'"),
    ("parquet", of_numbers, "data:[0]: has the value 1 in 'prompt', not text"),
    ("arrow", make_writer(JSONL), "data: is not a readable Arrow file"),
    ("arrow", make_writer(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(99)), "data: is not a readable Arrow file"),
    ("arrow", arrow_of_nothing, "data: is not a folder written by datasets' save_to_disk"),
    *[(kind, folder, "data: is a folder, not a file") for kind in ("jsonl", "json", "csv", "text", "parquet")],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "write_data", "line"), UNREADABLE_BY_SOURCE)
def test_every_source_rejects_unreadable_files_in_one_line(kind, write_data, line, check_source, tmp_path):
    write_data(tmp_path)
    result = check_source(kind)
    assert str(result).startswith(line)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("x" * 300, "x" * 300 + ": cannot be read: File name too long"),
        ("none/*.jsonl", "none/*.jsonl: no file matches this pattern"),
    ],
)
def test_path_without_a_file_is_rejected(path, line, check_source):
    assert check_source("jsonl", path).startswith(line)
