import pytest
from harness_sources.json_sources import JsonlSource

from harness import HarnessError, InvalidRecord


def read(path):
    return list(JsonlSource(str(path), {}).records())


def test_each_line_is_a_row_with_its_location(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": "é"}\n', encoding="utf-8")
    assert [(r.location, dict(r.data)) for r in read(tmp_path / "x.jsonl")] == [
        ("x.jsonl:1", {"a": 1}),
        ("x.jsonl:3", {"a": "é"}),
    ]


def test_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read(tmp_path / "x.jsonl")[0].data == {"a": 1}


def test_several_files_are_read_in_order(tmp_path):
    for name in "ba":
        (tmp_path / name).write_text(f'{{"file": "{name}"}}')
    records = JsonlSource([str(tmp_path / "b"), str(tmp_path / "a")], {}).records()
    assert [r.data["file"] for r in records] == ["b", "a"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{a: 1}", "is not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"a": "\xff"}', "is not UTF-8: byte 8 is 0xff"),
        (b'[{"a": 1}]', "is an array, not an object; for one JSON array in a file use the source 'json'"),
        (b"3", "is the value 3, not an object"),
        (b"[" * 100_000, "cannot be read: brackets are nested more than 100 deep; reduce the nesting to 100 levels"),
        (
            b"[" * 101 + b"]" * 101,
            "cannot be read: brackets are nested more than 100 deep; reduce the nesting to 100 levels",
        ),
        (b"[" * 100 + b"]" * 100, "is an array, not an object"),
        (
            b'{"a": ' + b"1" * 5000 + b"}",
            "has an integer with more digits than can be read; write the number as text",
        ),
    ],
)
def test_an_invalid_line_is_an_invalid_row_with_its_reason(tmp_path, monkeypatch, line, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read("x.jsonl")
    assert isinstance(bad, InvalidRecord)
    assert f"{bad.location}: {bad.what}; {bad.hint}".startswith(f"x.jsonl:2: {what}")
    assert bad.raw.strip() == line.decode("utf-8", "backslashreplace")
    assert (first.data, last.data) == ({"a": 1}, {"a": 2})


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows_is_an_error(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(HarnessError, match="has no rows"):
        read(tmp_path / "x.jsonl")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(HarnessError, match="there is no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(HarnessError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ('{"a": "b"},', "has a comma after its object", "remove the comma at the end of each line"),
        ('{"a": "b"}, {"a": "c"}', "is not JSON: Extra data at column 11", "write one JSON object per line"),
        ("{'a': 'b'}", "is an object of Python, not JSON", "write each line with json.dumps(row)"),
        ('{"q": {"0": "a", "1": "b"}, "a": {"0": "c", "1": "d"}}', "is a table by columns", "df.to_json(path, orient="),
    ],
)
def test_common_mistakes_in_a_line_are_named_with_the_remedy(line, what, hint, tmp_path):
    (tmp_path / "x.jsonl").write_text(f"{line}\n")
    (record,) = read(tmp_path / "x.jsonl")
    assert record.what.startswith(what)
    assert record.hint.startswith(hint) or hint in record.hint


def test_the_id_of_a_dataset_in_place_of_a_file_is_recognized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HarnessError, match=r'"hub": {"name": "tatsu-lab/alpaca"}'):
        list(JsonlSource("tatsu-lab/alpaca", {}).records())
    (tmp_path / "data").mkdir()
    for path in ("data/alpaca", "data/x.jsonl", "more/x.jsonl", "alpaca"):
        with pytest.raises(HarnessError) as error:
            list(JsonlSource(path, {}).records())
        assert error.value.hint == "check the source's path"
