from pathlib import Path

import pytest
from harness_sources.csv_table import CsvSource

from harness import HarnessError, InvalidRecord, Record


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text, delimiter=",", encoding=None):
    Path("x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(CsvSource("x.csv", {}, delimiter, encoding).records())


def rows(text, delimiter=","):
    return [(record.location, dict(record.data)) for record in read(text, delimiter)]


def test_the_first_line_names_the_columns_and_locations_are_first_lines_of_rows():
    text = '\ufeffq,a\n"one\nand, more","say ""yes"""\n\ntwo,\r\n'
    assert rows(text) == [
        ("x.csv:2", {"q": "one\nand, more", "a": 'say "yes"'}),
        ("x.csv:5", {"q": "two", "a": ""}),
    ]


def test_the_option_delimiter_separates_fields():
    assert rows("q;a\n1,5;2\n", ";") == [("x.csv:2", {"q": "1,5", "a": "2"})]
    with pytest.raises(HarnessError, match="has one column, 'q;a', when split at ','; set the source's option"):
        read("q;a\n1;2\n")


def test_a_field_may_exceed_the_default_limit_of_the_csv_module():
    assert len(rows(f'q,a\n"{"x" * 200_000}",b\n')[0][1]["q"]) == 200_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('q,a\n1,2\n"open,2\n', "x.csv:3: is not CSV: unexpected end of data"),
        ("q,q\n1,2\n", "x.csv:1: the header names the column 'q' twice"),
        (b"q,\xff\n1,2\n", "x.csv:1: is not UTF-8: byte 3 is 0xff"),
        ("q,a\n", "x.csv: the file has no rows"),
        ("", "x.csv: the file has no rows"),
    ],
)
def test_other_content_is_refused_with_its_line(text, line):
    with pytest.raises(HarnessError) as caught:
        read(text)
    assert str(caught.value).startswith(line)


def test_rows_with_a_wrong_number_of_fields_are_invalid():
    first, second, third = read("q,a\n1,2,3\n1\n1,2\n")
    assert (first.location, first.what, first.raw) == (
        "x.csv:2", "has 3 fields, but the header names 2", ["1", "2", "3"],
    )  # fmt: skip
    assert isinstance(second, InvalidRecord)
    assert third == Record("x.csv:4", {"q": "1", "a": "2"})


def test_a_row_that_is_not_utf8_is_invalid_and_later_rows_are_read():
    bad, good = read(b'q,a\n1,"two\n\xff lines"\n3,4\n')
    assert (bad.location, bad.what, bad.raw) == ("x.csv:2", "is not UTF-8: byte 1 is 0xff", "1,two\n\\xff lines")
    assert good == Record("x.csv:4", {"q": "3", "a": "4"})


@pytest.mark.parametrize(
    ("written", "named", "answer"),
    [
        ("gbk", "gbk", "长江"),
        ("gb18030", "gb18030", "长江 🙂"),
        ("cp1252", "cp1252", "où … “là”"),
        ("utf-16", None, "长江 🙂"),
        ("utf-16-be", "utf-16-be", "长江"),
        ("utf-32", None, "长江"),
        ("utf-8-sig", None, "长江"),
        ("shift_jis", "shift_jis", "表"),
    ],
)
def test_files_in_another_encoding_are_read(written, named, answer):
    records = read(f'q,a\r\n"one\nand, more\u0085",{answer}\r\n'.replace("\u0085", "").encode(written), encoding=named)
    assert [(record.location, dict(record.data)) for record in records] == [
        ("x.csv:2", {"q": "one\nand, more", "a": answer}),
    ]  # fmt: skip


def test_an_encoding_that_is_unknown_or_not_that_of_the_file_is_an_error():
    for name in ("klingon", "hex"):
        with pytest.raises(HarnessError, match=f"there is no text encoding '{name}'; write one"):
            read("q,a\n1,2\n", encoding=name)
    with pytest.raises(HarnessError, match=r"x.csv: is not gbk: .*set the source's option"):
        read("q,a\n1,\xff\n".encode("latin-1"), encoding="gbk")
    (invalid,) = read("q,a\n1,é\n".encode("cp1252"))
    assert 'name its encoding, e.g. "encoding": "cp1252"' in invalid.hint
