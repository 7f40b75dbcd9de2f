import pytest
from harness_sources.json_array import JsonArray

from harness import HarnessError


def read(folder, text):
    path = folder / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(JsonArray("x.json").records())


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '{"version": 3, "data": [{"a": 1}, {"a": 2}]}'])
def test_rows_are_the_objects_of_the_one_array(tmp_path, text):
    assert [(r.place, r.data["a"]) for r in read(tmp_path, text)] == [("x.json:[0]", 1), ("x.json:[1]", 2)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"a" 1}]', "x.json:2:6: is not JSON: Expecting ':' delimiter; mend the file"),
        ('{"a": 1}\n{"a": 2}', "x.json:2:1: is not JSON: Extra data; for one object a line use the source 'jsonl'"),
        (b'[\n{"a": "\xe9"}]', "x.json:2: is not UTF-8: byte 10 is 0xe9; save the file as UTF-8"),
        ("3", "x.json: is not an array of objects; keep one array of objects in the file"),
        ('{"a": [], "b": []}', "x.json: is an object with 2 arrays"),
        ('[{"a": 1}, "b"]', 'x.json:[1]: is "b", not an object; mend the row'),
        ("[]", "x.json: the data set holds no rows"),
        ("", "x.json: the data set holds no rows"),
        ("[" * 100_000, "x.json: is nested too deep"),
    ],
)
def test_what_is_no_array_of_objects_is_told_with_its_place(tmp_path, text, line):
    with pytest.raises(HarnessError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(line)


def test_a_missing_file_is_named():
    with pytest.raises(HarnessError, match=r"none.json: there is no such file"):
        list(JsonArray("none.json").records())
