import gzip
import http.server
import os
import sys
import threading

import fsspec
import pyarrow
import pytest
from harness_sources import arrow, csv_table, files, json_sources
from harness_sources import text as text_module
from harness_sources.arrow import ArrowSource, ParquetSource
from harness_sources.csv_table import CsvSource
from harness_sources.files import display_path
from harness_sources.json_sources import JsonlSource, JsonSource
from harness_sources.text import TextSource
from pyarrow import parquet

from harness import HarnessError

LINES = b'{"a": 1}\n{"a": 2}\n'


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(path, **storage):
    return [(record.location, record.data["a"]) for record in JsonlSource(path, storage).records()]


def error_of(path, **storage):
    with pytest.raises(HarnessError) as caught:
        read(path, **storage)
    assert len(caught.value.lines()) == 1
    return str(caught.value)


def zstd(data):
    return pyarrow.compress(data, "zstd", asbytes=True)


# -- compression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x"])
def test_gzip_and_zstd_are_detected_by_their_first_bytes(tmp_path, pack, name):
    (tmp_path / name).write_bytes(pack(LINES) + pack(b'{"a": 3}\n'))
    assert read(name) == [(f"{name}:1", 1), (f"{name}:2", 2), (f"{name}:3", 3)]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_every_text_source_reads_compressed_files(tmp_path, pack):
    for name, text in {"x.json": b'[{"a": "1"}]', "x.csv": b"a\n1\n", "x.txt": b"1\n"}.items():
        (tmp_path / name).write_bytes(pack(text))
    sources = [JsonSource("x.json", {}), CsvSource("x.csv", {}, ",", None), TextSource("x.txt", {}, "line")]
    assert [list(next(iter(source.records())).data.values()) for source in sources] == [["1"]] * 3


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_truncated_or_damaged_compressed_data_is_an_error(tmp_path, pack):
    compressed = pack(b"".join(b'{"a": %d}\n' % (n * 7919 % 104729) for n in range(20_000)))
    (tmp_path / "x").write_bytes(compressed[: len(compressed) // 2])
    line = error_of("x")
    assert line.startswith("x: ")
    assert "is truncated" in line or "Truncated" in line
    (tmp_path / "x").write_bytes(compressed[:12] + b"\xff" * 1000 + compressed[1012:])
    assert error_of("x").startswith("x: cannot be read: ")


# -- patterns and packages --------------------------------------------------------------------------------------------


def test_a_pattern_expands_to_its_files_sorted_by_name(tmp_path):
    (tmp_path / "data").mkdir()
    for name in "ba":
        (tmp_path / "data" / f"{name}.jsonl").write_bytes(LINES[:9])
    (tmp_path / "data" / "c.txt").write_text("no")
    assert [location for location, _ in read("data/*.jsonl")] == ["data/a.jsonl:1", "data/b.jsonl:1"]
    assert error_of("data/*.json").startswith("data/*.json: no file matches this pattern")


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    for name in ("x[1].jsonl", "x1.jsonl"):
        (tmp_path / name).write_bytes(LINES[:9])
    assert read("x[1].jsonl") == [("x[1].jsonl:1", 1)]


def test_a_file_of_an_installed_package_is_read_without_executing_its_code(tmp_path, monkeypatch):
    (tmp_path / "somedata" / "rows").mkdir(parents=True)
    (tmp_path / "somedata" / "__init__.py").write_text("raise SystemExit('its code was run')")
    (tmp_path / "somedata" / "rows" / "x.jsonl").write_bytes(LINES)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read("pkg://somedata/rows/x.jsonl") == [("somedata/rows/x.jsonl:1", 1), ("somedata/rows/x.jsonl:2", 2)]
    assert "somedata" not in sys.modules
    assert "has no such file" in error_of("pkg://somedata/y.jsonl")
    assert "leads out of the package" in error_of("pkg://somedata/../x.jsonl")
    assert "no Python package 'nodata' is installed" in error_of("pkg://nodata/x.jsonl")
    assert "does not name a file of a package" in error_of("pkg://somedata")


def test_folders_missing_files_and_nul_characters_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    assert error_of("data") == "data: is a folder, not a file; name the files in it, e.g. data/*.jsonl"
    assert error_of("none") == "none: there is no such file; check the source's path"
    assert error_of("a\0b") == "'a\\x00b': is not a path: it has a NUL character; check the source's path"


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory():
    """Yield fsspec's in-memory file system, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_every_file_source_reads_from_fsspec(memory):
    table = pyarrow.table({"a": ["1", "2"]})
    memory.pipe("/d/x.jsonl.gz", gzip.compress(LINES))
    memory.pipe("/d/x.json", b'[{"a": 1}]')
    memory.pipe("/d/x.csv", b"a\n1\n")
    memory.pipe("/d/x.txt", b"1\n")
    with memory.open("/d/x.parquet", "wb") as file:
        parquet.write_table(table, file)
    with memory.open("/d/saved/part.arrow", "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    memory.pipe("/d/saved/state.json", b'{"_data_files": [{"filename": "part.arrow"}]}')
    sources = [
        JsonlSource("memory://d/x.jsonl.gz", {}), JsonSource("memory://d/x.json", {}),
        CsvSource("memory://d/x.csv", {}, ",", None), TextSource("memory://d/x.txt", {}, "line"),
        ParquetSource("memory://d/x.parquet", {}), ArrowSource("memory://d/saved", {}, None),
    ]  # fmt: skip
    assert [next(iter(source.records())).location for source in sources] == [
        "memory://d/x.jsonl.gz:1", "memory://d/x.json:[0]", "memory://d/x.csv:2", "memory://d/x.txt:1",
        "memory://d/x.parquet:[0]", "memory://d/saved/part.arrow:[0]",
    ]  # fmt: skip


def test_a_pattern_of_an_address_expands_to_its_files(memory):
    for name in "ba":
        memory.pipe(f"/d/{name}.jsonl", LINES[:9])
    assert [location for location, _ in read("memory://d/*.jsonl")] == [
        "memory:///d/a.jsonl:1",
        "memory:///d/b.jsonl:1",
    ]
    assert "no file matches this pattern" in error_of("memory://d/*.json")
    assert "there is no such file" in error_of("memory://d/none.jsonl")


@pytest.fixture
def web(tmp_path):
    """Serve the test's folder over HTTP and yield the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_web_file_is_read_and_its_query_is_not_shown(tmp_path, web):
    (tmp_path / "x.jsonl").write_bytes(LINES)
    assert read(f"{web}/x.jsonl?signature=abc") == [(f"{web}/x.jsonl:1", 1), (f"{web}/x.jsonl:2", 2)]
    line = error_of(f"{web}/none.jsonl?signature=abc")
    assert line == f"{web}/none.jsonl: there is no such file; check the source's path"


def test_an_unreachable_server_is_a_one_line_error_without_the_query():
    line = error_of("http://127.0.0.1:9/x.jsonl?signature=abc")
    assert line.startswith("http://127.0.0.1:9/x.jsonl: cannot be read: ")
    assert "abc" not in line


def test_a_missing_file_system_package_error_names_what_to_install(monkeypatch):
    def url_to_fs(path, **storage):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    what = "reading {}:// needs a package that is not installed; pip install {}"
    assert error_of("s3://b/x") == "s3://b/x: " + what.format("s3", "'harness-sft[s3]'")
    assert error_of("gs://b/x") == "gs://b/x: " + what.format("gs", "gcsfs")


def test_an_unsupported_protocol_is_refused():
    assert error_of("nonsense://b/x") == "nonsense://b/x: nonsense:// is not supported; check the address"


@pytest.mark.parametrize("name", ["key", "secret", "aws_secret_access_key", "token", "sas_token", "password"])
def test_a_credential_in_a_spec_is_refused(name):
    with pytest.raises(
        HarnessError, match=f"'{name}' is a credential, and credentials are not allowed in a spec; set it in the"
    ):
        JsonlSource("s3://b/x", {name: "abc"})
    with pytest.raises(HarnessError, match=f"'{name}' is a credential"):
        JsonlSource("s3://b/x", {"client_kwargs": {name: "abc"}})


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(HarnessError) as caught:
        JsonlSource(["a.jsonl", "https://me:hidden@host/x.jsonl"], {})
    assert str(caught.value).startswith("https://host/x.jsonl: the address has a password")
    assert "hidden" not in str(caught.value)


def test_a_setting_without_a_secret_is_accepted():
    JsonlSource("gs://b/x", {"token": "anon", "anon": True, "client_kwargs": {"region_name": "eu-west-1"}})


def test_an_address_is_shown_without_its_user_and_its_query():
    assert display_path("https://me:word@host:8/a/b.jsonl?sig=1#x") == "https://host:8/a/b.jsonl"
    assert display_path("s3://bucket/a.jsonl") == "s3://bucket/a.jsonl"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_and_a_device_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "pipe.jsonl: cannot be read: it is not a regular file" in error_of(str(tmp_path / "pipe.jsonl"))
    assert "/dev/zero: cannot be read: it is not a regular file" in error_of("/dev/zero")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../etc/passwd"])
def test_a_path_of_a_package_that_leads_out_of_it_is_refused(name):
    assert "leads out of the package" in error_of(f"pkg://json/{name}")


@pytest.fixture
def small_rows(monkeypatch):
    """Rows of more than 40 bytes are too large."""
    for module in (files, csv_table, json_sources, text_module, arrow):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 40)
    monkeypatch.setattr(files, "READ_SIZE", 16)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_only_the_row_that_is_too_large_is_invalid(tmp_path, small_rows, compress):
    lines = b'{"a": 1}\n{"a": "' + b"x" * 100 + b'"}\n{"a": 2}\n'
    (tmp_path / "rows.jsonl").write_bytes(compress(lines))
    records = list(JsonlSource("rows.jsonl", {}).records())
    assert [getattr(record, "what", "read") for record in records] == ["read", "is larger than 64 MB", "read"]
    assert [record.location for record in records] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    (tmp_path / "rows.txt").write_bytes(compress(b"short\n" + b"x" * 100 + b"\nlast"))
    records = list(TextSource("rows.txt", {}, "line").records())
    assert [getattr(record, "what", "read") for record in records] == ["read", "is larger than 64 MB", "read"]
    (record,) = TextSource("rows.txt", {}, "file").records()
    assert record.what == "is larger than 64 MB"


def test_a_row_that_is_too_large_ends_a_file_that_cannot_be_read_after_it(tmp_path, small_rows):
    (tmp_path / "rows.csv").write_bytes(b"a\n1\n" + b"x" * 100 + b"\n")
    with pytest.raises(HarnessError, match=r"rows\.csv:3: the row is larger than 64 MB"):
        list(CsvSource("rows.csv", {}, ",", None).records())
    (tmp_path / "rows.json").write_bytes(b'[{"a": "' + b"x" * 400_000 + b'"}]')
    with pytest.raises(HarnessError, match=r"rows\.json:1:2: the row is larger than 64 MB"):
        list(JsonSource("rows.json", {}).records())


def test_only_the_row_of_a_table_that_is_too_large_is_invalid(tmp_path, small_rows):
    parquet.write_table(pyarrow.table({"a": ["x", "y" * 100, "z"]}), "rows.parquet")
    records = list(ParquetSource("rows.parquet", {}).records())
    assert [type(record).__name__ for record in records] == ["Record", "InvalidRecord", "Record"]
    assert "larger than 64 MB" in records[1].what
