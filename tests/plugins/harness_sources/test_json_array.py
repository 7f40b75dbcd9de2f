import io
import json

import pytest
from harness_sources import json_sources
from harness_sources.json_sources import JsonSource, iter_array_items

from harness import HarnessError, InvalidRecord


def read(folder, text):
    path = folder / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(JsonSource("x.json", {}).records())


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '{"version": 3, "data": [{"a": 1}, {"a": 2}]}'])
def test_rows_are_the_objects_of_the_only_array(tmp_path, text):
    assert [(r.location, r.data["a"]) for r in read(tmp_path, text)] == [("x.json:[0]", 1), ("x.json:[1]", 2)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"a" 1}]', "x.json:2:6: is not JSON: Expecting ':' delimiter; fix the file"),
        ('{"a": 1}\n{"a": 2}', "x.json:2:1: is not JSON: Extra data; for one object per line use the source 'jsonl'"),
        (b'[\n{"a": "\xe9"}]', "x.json:2: is not UTF-8: byte 10 is 0xe9; save the file as UTF-8"),
        ("3", "x.json: is not an array of objects; write one array of objects into the file"),
        ('{"a": [], "b": []}', "x.json: is an object with 2 arrays"),
        ('[{"a": 1}\n {"a": 2}]', "x.json:2:2: is not JSON: Expecting ',' delimiter; fix the file"),
        ('[{"a": 1},]', "x.json:1:11: is not JSON: Expecting value; fix the file"),
        ('[{"a": 1}] []', "x.json:1:12: is not JSON: Extra data; fix the file"),
        ('[{"a": 1}', "x.json:1:10: is not JSON: Expecting ',' delimiter; fix the file"),
        ('[{"a": "1', "x.json:1:8: is not JSON: Unterminated string starting at; fix the file"),
        (b'{"a": [{"b": "\xe9"}]}', "x.json:1: is not UTF-8: byte 15 is 0xe9; save the file as UTF-8"),
        ("[]", "x.json: the file has no rows"),
        ("", "x.json: the file has no rows"),
        (
            "[" * 100_000,
            "x.json:1:102: cannot be read: brackets are nested more than 100 deep; reduce the nesting to 100 levels",
        ),
        (
            "[\n" + '{"a":' * 101 + "1" + "}" * 101 + "]",
            "x.json:2:501: cannot be read: brackets are nested more than 100 deep; reduce the nesting to 100 levels",
        ),
        (
            '{"rows": ' + "[" * 100 + "]" * 100 + "}",
            "x.json:1:109: cannot be read: brackets are nested more than 100 deep; reduce the nesting to 100 levels",
        ),
        ('[{"a": 1},\n{"a": ' + "1" * 5000 + "}]", "x.json:2:1: has an integer with more digits than can be read"),
        ('{"a": [' + "1" * 5000 + "]}", "x.json: has an integer with more digits than can be read"),
    ],
)
def test_other_content_is_refused_with_its_location(tmp_path, text, line):
    with pytest.raises(HarnessError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(line)


def test_an_item_that_is_not_an_object_is_an_invalid_row(tmp_path):
    first, bad, last = read(tmp_path, '[{"a": 1}, "b", {"a": 2}]')
    assert bad == InvalidRecord("x.json:[1]", 'is "b", not an object', "fix the row", "b")
    assert (first.location, last.location) == ("x.json:[0]", "x.json:[2]")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_an_array_is_read_item_by_item_with_any_block_size(size):
    value = [{"a": 'é\n\\"😀' * 9, "b": [1.5e3, None, True]}, 12, "x, ]", [], {"c": {}}, -3]
    raw = ("\ufeff [\n" + ",\n ".join(json.dumps(item, ensure_ascii=False) for item in value) + " ]\n").encode()
    stream = io.BytesIO(raw)
    stream.read = lambda _, read=stream.read: read(size)
    assert list(iter_array_items("x.json", b"", stream)) == [(item, None) for item in value]


def test_the_location_of_an_error_counts_all_blocks(monkeypatch):
    monkeypatch.setattr(json_sources, "BLOCK_SIZE", 8)
    raw = b'[\n{"a": "one"},\n\n  {"a": "two"},\n  {"a" 3}\n]' + b" " * 99
    with pytest.raises(HarnessError, match=r"x.json:5:8: is not JSON: Expecting ':' delimiter"):
        list(iter_array_items("x.json", b"", io.BytesIO(raw)))
    with pytest.raises(HarnessError, match=r"x.json:3: is not UTF-8: byte 11 is 0xff"):
        list(iter_array_items("x.json", b"", io.BytesIO(b'["a",\n\n"b \xff"]')))


def test_an_array_is_not_read_beyond_the_requested_item(tmp_path):
    read = iter_array_items("x.json", b"", stream := io.BytesIO(b"[" + b'{"a": 1},' * 200_000 + b"{}]"))
    assert next(read) == ({"a": 1}, None)
    assert stream.tell() < 300_000


def test_a_missing_file_is_named():
    with pytest.raises(HarnessError, match=r"none.json: there is no such file"):
        list(JsonSource("none.json", {}).records())
