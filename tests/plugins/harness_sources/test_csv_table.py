import pytest
from harness_sources.csv_table import CsvTable

from harness import HarnessError


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text, delimiter=","):
    from pathlib import Path

    Path("x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(r.place, dict(r.data)) for r in CsvTable("x.csv", delimiter).records()]


def test_the_first_line_names_the_columns_and_a_place_is_where_the_row_begins():
    text = '\ufeffq,a\n"one\nand, more","say ""yes"""\n\ntwo,\r\n'
    assert read(text) == [
        ("x.csv:2", {"q": "one\nand, more", "a": 'say "yes"'}),
        ("x.csv:5", {"q": "two", "a": ""}),
    ]


def test_the_delimiter_is_the_one_given():
    assert read("q;a\n1,5;2\n", ";") == [("x.csv:2", {"q": "1,5", "a": "2"})]
    with pytest.raises(HarnessError, match="has one column, 'q;a', when split at ','; set the source's option"):
        read("q;a\n1;2\n")


def test_a_field_may_be_longer_than_the_module_allows_by_default():
    assert len(read(f'q,a\n"{"x" * 200_000}",b\n')[0][1]["q"]) == 200_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("q,a\n1,2\n1,2,3\n1\n", "x.csv:3: has 3 fields where the header names 2"),
        ('q,a\n1,2\n"open,2\n', "x.csv:3: is not CSV: unexpected end of data"),
        ("q,q\n1,2\n", "x.csv:1: the header names the column 'q' twice"),
        (b"q,a\n1,\xff\n", "x.csv:2: is not UTF-8: byte 3 is 0xff"),
        ("q,a\n", "x.csv: the data set holds no rows"),
        ("", "x.csv: the data set holds no rows"),
    ],
)
def test_what_is_no_table_is_told_with_its_line(text, line):
    with pytest.raises(HarnessError) as caught:
        read(text)
    assert str(caught.value).startswith(line)


def test_all_rows_of_a_wrong_width_are_told_together():
    with pytest.raises(HarnessError) as caught:
        read("q,a\n1,2,3\n1\n1,2\n")
    assert len(caught.value.lines()) == 2
