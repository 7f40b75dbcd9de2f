from pathlib import Path

import pytest
from harness_sources.csv_table import CsvSource

from harness import HarnessError, InvalidRecord, Record


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text, delimiter=","):
    Path("x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(CsvSource("x.csv", {}, delimiter).records())


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
