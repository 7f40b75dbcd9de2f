"""Sources on S3, simulated by moto's server on loopback."""

import gzip

import pytest
from harness_sources.arrow import ArrowSource, ParquetSource
from harness_sources.json_sources import JsonlSource

from harness import HarnessError
from harness.data.reading.corpus import read_corpus
from harness.spec_keys.data import SOURCE_KEYS

pytest.importorskip("s3fs")
pytest.importorskip("moto")

LINES = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
OPTIONS = {key: option["default"] for key, option in SOURCE_KEYS.items()}


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """Return a client of the server with a bucket, and set the environment for it."""
    import boto3
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="rows")
    yield client
    for item in client.list_objects_v2(Bucket="rows").get("Contents", ()):
        client.delete_object(Bucket="rows", Key=item["Key"])
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_rows_are_read_by_name_and_pattern_plain_and_compressed(s3, tmp_path):
    s3.put_object(Bucket="rows", Key="d/a.jsonl", Body=LINES)
    s3.put_object(
        Bucket="rows", Key="d/b.jsonl.gz", Body=gzip.compress(LINES.replace(b'"a"', b'"x"').replace(b'"c"', b'"y"'))
    )
    corpus = read_corpus(JsonlSource("s3://rows/d/*", {}), OPTIONS, "x", folder=tmp_path)
    assert [row.location for row in corpus] == [
        f"s3://rows/d/{n}" for n in ("a.jsonl:1", "a.jsonl:2", "b.jsonl.gz:1", "b.jsonl.gz:2")
    ]
    assert [row.messages[0].content for row in corpus] == ["a", "c", "x", "y"]


def test_s3_tables_are_read_with_random_access(s3):
    import pyarrow
    from pyarrow import parquet

    table, sink = pyarrow.table({"a": [1, 2, 3]}), pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    s3.put_object(Bucket="rows", Key="x.parquet", Body=sink.getvalue().to_pybytes())
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    s3.put_object(Bucket="rows", Key="saved/part.arrow", Body=sink.getvalue().to_pybytes())
    s3.put_object(Bucket="rows", Key="saved/state.json", Body=b'{"_data_files": [{"filename": "part.arrow"}]}')
    for source in (ParquetSource("s3://rows/x.parquet", {}), ArrowSource("s3://rows/saved", {}, None)):
        assert [record.data["a"] for record in source.records()] == [1, 2, 3]


def test_the_spec_may_set_the_endpoint(s3, server, monkeypatch):
    s3.put_object(Bucket="rows", Key="a.jsonl", Body=LINES)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert len(list(JsonlSource("s3://rows/a.jsonl", {"endpoint_url": server}).records())) == 2


def test_a_missing_object_and_bucket_are_errors(s3):
    for path in ("s3://rows/none.jsonl", "s3://nobucket/a.jsonl"):
        with pytest.raises(HarnessError, match=f"{path}: there is no such file"):
            list(JsonlSource(path, {}).records())


def test_an_unreachable_endpoint_and_missing_credentials_are_one_line_errors(s3, monkeypatch):
    import s3fs

    config = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    away = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": config}
    with pytest.raises(HarnessError) as caught:
        list(JsonlSource("s3://rows/a.jsonl", away).records())
    assert str(caught.value).startswith("s3://rows/a.jsonl: cannot be read: ")
    assert len(caught.value.lines()) == 1
    for source in (JsonlSource("s3://rows/*.jsonl", away), ArrowSource("s3://rows/saved", away, None)):
        with pytest.raises(HarnessError, match=r"s3://rows/.*: cannot be read: "):
            list(source.records())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(HarnessError, match="credentials"):
        list(JsonlSource("s3://rows/a.jsonl", {}).records())
