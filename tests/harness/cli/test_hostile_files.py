"""Files and rows that nobody means to write: each is read for what it is, or refused in one clear line and exit code 2.

Through the command line, as a person meets them; what each source says in detail, its own tests tell.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from harness.cli import main

GOOD = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(3)]
LINES = [json.dumps(row).encode() for row in GOOD]
WHOLE = b"\n".join(LINES) + b"\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A folder that has a tokenizer; no command here loads weights."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    return folder


@pytest.fixture
def check(tmp_path, monkeypatch, capsys, model):
    """Check a spec with one source; gives the rows used, or the one line that it is refused with."""
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def check(kind, path="data", **options):
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
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        facts = json.loads(shown.out)
        if code == 0:
            return facts["sources"]["data"]["used"]
        assert code == 2
        (line,) = facts["failures"]
        assert shown.err.splitlines()[-1].startswith("harness: ")
        assert not any(ord(character) < 32 for character in shown.err.replace("\n", ""))
        assert len(line) < 600
        assert "; " in line, "it says what to do"
        return line

    return check


def with_row(row):
    return b"\n".join([*LINES, row if isinstance(row, bytes) else json.dumps(row).encode()]) + b"\n"


HANDLED = {
    "a byte order mark": (codecs.BOM_UTF8 + WHOLE, 3),
    "two files with byte order marks, put into one": (
        codecs.BOM_UTF8 + LINES[0] + b"\n" + codecs.BOM_UTF8 + LINES[1], 2
    ),
    "a byte order mark on a line by itself": (codecs.BOM_UTF8 + b"\n" + WHOLE, 3),
    "line ends of Windows": (WHOLE.replace(b"\n", b"\r\n"), 3),
    "no line end at the end, and blank lines": (b"\n \t\n" + WHOLE.rstrip() + b"\n\n" + b" ", 3),
    "a NUL as an escape": (with_row({"instruction": "a\0b?", "output": "c\0."}), 4),
    "separators of Unicode inside of rows": (
        with_row('{"instruction": "a\u2028b\u2029c\u0085d", "output": "e\\u001cf"}'.encode()), 4
    ),
    "other columns of every kind": (
        with_row({**GOOD[0], "output": "Other.", "meta": {"x": [1, None, {"y": 2.5}]}, "": 1}), 4
    ),
    "nested as deep as the limit": (
        with_row({**GOOD[0], "output": "Other.", "meta": json.loads("[" * 99 + "]" * 99)}), 4
    ),
    "a line of a megabyte": (with_row({"instruction": "Say it.", "output": "long " * 200_000}), 4),
    "a gzip file of two parts": (gzip.compress(LINES[0] + b"\n") + gzip.compress(LINES[1]), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDLED)
def test_what_is_odd_and_can_be_read_is_read(name, check, tmp_path):
    content, rows = HANDLED[name]
    (tmp_path / "data").write_bytes(content)
    assert check("jsonl") == rows


DEEP = b'{"a":' * 3000 + b"1" + b"}" * 3000
SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
REFUSED = {
    "an empty file": (b"", "data: the file has no rows"),
    "a file of nothing but a byte order mark": (codecs.BOM_UTF8, "data: the file has no rows"),
    "line ends of old Macs": (WHOLE.replace(b"\n", b"\r"), "data:1: is not JSON: Extra data"),
    "a NUL as it is": (with_row(b'{"instruction": "a\0", "output": "b"}'), "data:4: is not JSON: Invalid control"),
    "a file of NULs": (bytes(1000), "data:1: is not JSON"),
    "a megabyte that is no JSON": (with_row(b"x" * 1_000_000), "data:4: is not JSON"),
    "nested too deep": (with_row(DEEP), "data:4: cannot be read: brackets are nested more than 100 deep"),
    "nested one level too deep": (
        with_row({**GOOD[0], "meta": json.loads("[" * 100 + "]" * 100)}), "data:4: cannot be read: brackets are nested"
    ),
    "a text of a call that is nested too deep": (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": DEEP.decode()}]},
                ]
            }
        ).encode(),
        "data:1: has text in messages[1].tool_calls[0].arguments that cannot be read: brackets are nested",
    ),
    "a call nested too deep": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"name": "f", '
        b'"arguments": ' + DEEP[: 5 * 80] + b"1" + b"}" * 80 + b"}]}]}",
        "data:1: is nested deeper than 64 levels in messages[1].tool_calls[0].arguments",
    ),
    "rows of several forms": (
        with_row({"messages": SAID}),
        "sources.data: its rows have several row formats: data:1 is alpaca, data:4 is messages",
    ),
    "a number as content": (with_row({"instruction": "a", "output": 5}), "data:4: has the value 5 in 'output', not"),
    "NaN as content": (with_row(b'{"instruction": NaN, "output": "b"}'), "data:4: has the value nan in 'instruction'"),
    "an array as content": (with_row({"instruction": ["a"], "output": "b"}), "data:4: has an array in 'instruction'"),
    "true as a row": (with_row(b"true"), "data:4: is the value true, not an object"),
    "a number of 5,000 digits": (with_row(b'{"instruction": ' + b"1" * 5000 + b"}"), "data:4: has an integer"),
    "a key twice": (
        with_row(b'{"instruction": "a", "output": "b", "output": "c"}'), "data:4: names the key 'output' twice in one"
    ),
    "not UTF-8": (with_row(b'{"instruction": "\xe9", "output": "b"}'), "data:4: is not UTF-8: byte 18 is 0xe9"),
    "half of a surrogate pair": (
        with_row(b'{"instruction": "\\ud83d", "output": "b"}'), "data:4: has half of a surrogate pair"
    ),
    "UTF-16": (WHOLE.decode().encode("utf-16"), "data: is UTF-16 or UTF-32, by its byte order mark"),
    "UTF-16, the other way round": (codecs.BOM_UTF16_BE + WHOLE.decode().encode("utf-16-be"), "data: is UTF-16, by"),
    "keys that steer a terminal": (
        json.dumps({"\x1b[31m\n\u202e": 1, **{f"key {n}": n for n in range(5000)}}).encode(),
        "sources.data: its row format is unknown: data:1 has the keys ␛[31m \\u202e, key 0, key 1",
    ),
    "a key of a megabyte": (json.dumps({"k" * 1_000_000: 1}).encode(), "sources.data: its row format is unknown"),
    "a role that steers a terminal": (
        json.dumps({"messages": [{"role": "\x1b]0;x\x07", "content": "a"}]}).encode(), "data:1: has the unknown role"
    ),
    "gzip, cut off": (gzip.compress(WHOLE * 99)[:60], "data: is truncated: its compressed data has no end"),
    "gzip, damaged at the end": (gzip.compress(WHOLE)[:-6] + b"??????", "data: cannot be read: CRC check failed"),
    "gzip in name alone": (b"\x1f\x8b" + WHOLE, "data: cannot be read: "),
    "xz": (lzma.compress(WHOLE), "data: is compressed with xz, which is not supported"),
    "bzip2": (b"BZh91AY&SY" + bytes(20), "data: is compressed with bzip2, which is not supported"),
    "a Parquet file": (b"PAR1\x15\x04" + bytes(20), "data: is a Parquet file, not a text file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(name, check, tmp_path):
    content, line = REFUSED[name]
    (tmp_path / "data").write_bytes(content)
    assert check("jsonl").startswith(line)


def zipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "data", "w") as archive:
        archive.writestr("x.jsonl", WHOLE)


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


def bytes_of(content):
    return lambda tmp_path: (tmp_path / "data").write_bytes(content)


OTHERS = [
    ("jsonl", zipped, "data: is a zip archive, not a text file"),
    ("jsonl", loop, "data: cannot be read: "),
    ("json", bytes_of(b""), "data: the file has no rows"),
    ("json", bytes_of(b"[]"), "data: the file has no rows"),
    ("json", bytes_of(b"[" + b",".join(LINES)), "data:1:"),
    ("json", bytes_of(b'[{"a": 1, "a": 2}]'), "data:[0]: names the key 'a' twice in one object"),
    ("json", bytes_of(b'{"rows": [{"a": 1, "a": 2}]}'), "data: names the key 'a' twice in one object"),
    ("json", bytes_of(b'{"a": [], "b": []}'), "data: is an object with 2 arrays"),
    ("json", bytes_of(b"[" * 100_000), "data:1:102: cannot be read: brackets are nested more than 100 deep"),
    ("json", bytes_of(b"[" + DEEP + b"]"), "data:1:502: cannot be read: brackets are nested more than 100 deep"),
    ("json", bytes_of(b"3"), "data: is not an array of objects"),
    ("json", bytes_of(b"[1]"), "data:[0]: is 1, not an object"),
    ("json", bytes_of(WHOLE.decode().encode("utf-16")), "data: is UTF-16 or UTF-32"),
    ("csv", bytes_of(b""), "data: the file has no rows"),
    ("csv", bytes_of(b"\nprompt,completion\na,b\n"), "data:1: the first line is blank"),
    ("csv", bytes_of(b"prompt,completion\ra,b\r"), "data:1: is not CSV: new-line character seen in unquoted field"),
    ("csv", bytes_of(b'prompt,completion\n"a,b\n'), "data:2: is not CSV: unexpected end of data"),
    ("csv", bytes_of(b"prompt,completion\na,b,c\n"), "data:2: has 3 fields, but the header names 2"),
    ("csv", bytes_of(b"prompt,prompt\na,b\n"), "data:1: the header names the column 'prompt' twice"),
    ("csv", bytes_of(b"prompt,completion\na,\xff\n"), "data:2: is not UTF-8"),
    ("text", bytes_of("a\n\u3000\u2003\n".encode()), "data:2: has a text of white space only"),
    ("text", bytes_of(b"a\nb\xff\n"), "data:2: is not UTF-8: byte 2 is 0xff"),
    ("parquet", bytes_of(b""), "data: is not a readable Parquet file"),
    ("parquet", bytes_of(WHOLE), "data: is not a readable Parquet file"),
    ("parquet", of_bad_text, "data:[0]: has a value that cannot be read: 'utf-8' codec can't decode byte 0xff"),
    ("parquet", of_two_columns, "data: has two columns called 'prompt'"),
    ("parquet", of_numbers, "data:[0]: has the value 1 in 'prompt', not text"),
    ("arrow", bytes_of(WHOLE), "data: is not a readable Arrow file"),
    ("arrow", bytes_of(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(99)), "data: is not a readable Arrow file"),
    ("arrow", arrow_of_nothing, "data: is not a folder written by datasets' save_to_disk"),
    *[(kind, folder, "data: is a folder, not a file") for kind in ("jsonl", "json", "csv", "text", "parquet")],
]  # fmt: skip


@pytest.mark.parametrize(("kind", "make", "line"), OTHERS)
def test_every_source_refuses_what_it_cannot_read_in_one_line(kind, make, line, check, tmp_path):
    make(tmp_path)
    found = check(kind)
    assert str(found).startswith(line)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("x" * 300, "x" * 300 + ": cannot be read: File name too long"),
        ("none/*.jsonl", "none/*.jsonl: no file matches this pattern"),
    ],
)
def test_a_path_that_is_none_is_refused(path, line, check):
    assert check("jsonl", path).startswith(line)
