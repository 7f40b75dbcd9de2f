import pytest
from harness_sources import arrow
from harness_sources.arrow import ParquetSource

from harness import HarnessError

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(rows):
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "x.parquet")


def test_rows_are_plain_values_with_their_index_over_all_batches(monkeypatch):
    monkeypatch.setattr(arrow, "PARQUET_BATCH_SIZE", 2)
    rows = [{"messages": [{"role": "user", "content": str(n)}]} for n in range(5)]
    write(rows)
    assert [(r.location, r.data) for r in ParquetSource("x.parquet", {}).records()] == [
        (f"x.parquet:[{n}]", row) for n, row in enumerate(rows)
    ]


def test_null_fields_of_objects_are_dropped():
    rows = [{"calls": [{"name": "a", "arguments": {"x": 1}}], "n": None}, {"calls": [{"name": "b", "arguments": {}}]}]
    write(rows)
    read = [record.data for record in ParquetSource("x.parquet", {}).records()]
    assert read == [rows[0], {**rows[1], "n": None}]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(HarnessError, match=r"x.parquet: is not a readable Parquet file"):
        list(ParquetSource("x.parquet", {}).records())
    with pytest.raises(HarnessError, match=r"none.parquet: there is no such file"):
        list(ParquetSource("none.parquet", {}).records())


def test_a_file_without_rows_is_an_error():
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), "x.parquet")
    with pytest.raises(HarnessError, match="has no rows"):
        list(ParquetSource("x.parquet", {}).records())
