import datasets
import pytest
from harness_sources.hub import Hub

from harness import HarnessError


def test_rows_are_those_of_the_split_asked_for_at_the_revision_asked_for(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list([{"q": "a"}, {"q": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = list(Hub("some/rows", "small", "test", "abc").records())
    assert [(r.place, r.data) for r in records] == [
        ("hub:some/rows/test:[0]", {"q": "a"}),
        ("hub:some/rows/test:[1]", {"q": "b"}),
    ]
    assert asked == [(("some/rows", "small"), {"split": "test", "revision": "abc"})]


def test_no_network_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HarnessError, match=r"hub:nobody/nothing: the hub cannot be reached: .*HF_HUB_OFFLINE"):
        list(Hub("nobody/nothing", None, "train", None).records())


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (datasets.exceptions.DatasetNotFoundError("gone"), "there is no such dataset: gone"),
        (ConnectionError("no route"), "the hub cannot be reached: no route"),
        (ValueError('Unknown split "x"'), 'cannot be loaded: Unknown split "x"'),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be loaded: Dataset scripts"),
    ],
)
def test_each_way_to_fail_is_one_line(monkeypatch, error, what):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(HarnessError) as caught:
        list(Hub("some/rows", None, "x", None).records())
    assert str(caught.value).startswith(f"hub:some/rows: {what}")


def test_a_folder_of_the_same_name_is_not_taken_for_the_dataset(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    with pytest.raises(HarnessError, match="hides the dataset"):
        list(Hub("rows", None, "train", None).records())


def test_an_empty_split_is_an_error(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: datasets.Dataset.from_list([]))
    with pytest.raises(HarnessError, match="holds no rows"):
        list(Hub("some/rows", None, "train", None).records())
