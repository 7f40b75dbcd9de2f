import pytest
from harness_sources.text import TextSource

from harness import HarnessError, InvalidRecord, Record


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  two \n \nthree".encode())
    (tmp_path / "b.txt").write_bytes(b"fine\n\xff\n")


def read(path, document="line"):
    return list(TextSource(path, {}, document).records())


def test_each_line_that_is_not_blank_is_a_document():
    assert read("a.txt") == [
        Record("a.txt:1", {"text": "one"}), Record("a.txt:3", {"text": "  two "}), Record("a.txt:5", {"text": "three"}),
    ]  # fmt: skip


def test_each_file_is_a_document_with_document_file():
    assert read(["a.txt"], "file") == [Record("a.txt", {"text": "one\r\n\n  two \n \nthree"})]
    assert read("b.txt", "file") == [
        InvalidRecord("b.txt", "is not UTF-8: byte 6 is 0xff", "save the file as UTF-8", "fine\n\\xff\n")
    ]


def test_a_line_that_is_not_utf8_is_an_invalid_row():
    assert read("b.txt")[1] == InvalidRecord(
        "b.txt:2", "is not UTF-8: byte 1 is 0xff", "save the file as UTF-8", "\\xff"
    )


def test_a_file_of_blank_lines_is_an_error(tmp_path):
    (tmp_path / "c.txt").write_text("\n \n")
    with pytest.raises(HarnessError, match=r"c.txt: the file has no rows"):
        read("c.txt")
