import datasets
import huggingface_hub
import pytest
from harness_sources.hub import HubSource

from harness import HarnessError

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def requests(monkeypatch):
    """Return the recorded calls of `load_dataset`, with a hub that resolves every revision to a commit."""
    requests = []

    def load_dataset(*args, **options):
        requests.append((args, options))
        rows = [{"q": "a", "c": [{"x": 1}]}, {"q": "b", "c": [{"y": 2}]}]
        dataset = datasets.Dataset.from_list(rows)
        return dataset.to_iterable_dataset() if options.get("streaming") else dataset

    def dataset_info(self, name, *, revision):
        return huggingface_hub.DatasetInfo(id=name, sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return requests


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_those_of_the_split_at_the_commit_of_the_revision(requests, streaming):
    hub = HubSource("some/rows", "small", "test", "v1", streaming)
    assert [(r.location, r.data) for r in hub.records()] == [
        ("hub:some/rows/test:[0]", {"q": "a", "c": [{"x": 1}]}),
        ("hub:some/rows/test:[1]", {"q": "b", "c": [{"y": 2}]}),
    ]
    more = {"streaming": True} if streaming else {}
    assert requests == [(("some/rows", "small"), {"split": "test", "revision": COMMIT, **more})]
    assert hub.metadata() == {"commit": COMMIT}


def test_a_branch_gives_a_warning_with_the_commit_to_pin(requests):
    for revision in (None, "main"):
        list((hub := HubSource("some/rows", None, "train", revision, False)).records())
        (warning,) = hub.warnings()
        assert f'"revision": "{COMMIT}"' in warning
    list((hub := HubSource("some/rows", None, "train", COMMIT, False)).records())
    assert hub.warnings() == ()


def test_without_the_hub_a_cached_copy_is_read_and_its_commit_is_unknown(requests, monkeypatch):
    def dataset_info(self, name, *, revision):
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    hub = HubSource("some/rows", None, "train", "v1", False)
    assert len(list(hub.records())) == 2
    assert requests[0][1]["revision"] == "v1"
    assert hub.metadata() == {}
    assert "cannot be reached to find out which commit" in hub.warnings()[0]


@pytest.mark.parametrize(
    ("kind", "what"),
    [("RepositoryNotFoundError", "there is no such dataset"), ("RevisionNotFoundError", "it has no revision 'v1'")],
)
def test_a_missing_dataset_or_revision_is_an_error(monkeypatch, kind, what):
    from huggingface_hub import errors

    def dataset_info(self, name, *, revision):
        raise getattr(errors, kind).__new__(getattr(errors, kind))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(HarnessError, match=what):
        list(HubSource("some/rows", None, "train", "v1", False).records())


def test_no_network_is_an_error_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HarnessError, match=r"hub:nobody/nothing: the hub cannot be reached: .*HF_HUB_OFFLINE"):
        list(HubSource("nobody/nothing", None, "train", None, False).records())


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (datasets.exceptions.DatasetNotFoundError("gone"), "there is no such dataset: gone"),
        (ConnectionError("no route"), "the hub cannot be reached: no route"),
        (ValueError('Unknown split "x"'), 'cannot be loaded: Unknown split "x"'),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be loaded: Dataset scripts"),
    ],
)
def test_each_failure_of_datasets_is_a_one_line_error(monkeypatch, error, what):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(HarnessError) as caught:
        list(HubSource("some/rows", None, "x", None, False).records())
    assert str(caught.value).startswith(f"hub:some/rows: {what}")


def test_a_folder_of_the_same_name_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    with pytest.raises(HarnessError, match="hides the dataset"):
        list(HubSource("rows", None, "train", None, False).records())


def test_an_empty_split_is_an_error(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: datasets.Dataset.from_list([]))
    with pytest.raises(HarnessError, match="has no rows"):
        list(HubSource("some/rows", None, "train", None, False).records())
