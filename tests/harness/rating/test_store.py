"""Decisions are on disk at once, are replayed, and survive a damaged line and several writers."""

from __future__ import annotations

import json
import os

import pytest

from harness.errors import HarnessError
from harness.rating.store import RatingStore, clean_rater_name


def rate(store, task, value, dimension="relevance", rater="alice"):
    store.append(rater, "rate", item=task.items[0].key, repeat=False, dimension=dimension, value=value, left=0)


def test_every_record_is_synced_before_append_returns(scores_task, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    store = RatingStore(scores_task)
    rate(store, scores_task, 4)
    (file,) = scores_task.folder.glob("ratings-*.jsonl")
    assert synced == [file.stat().st_size]
    assert file.name == "ratings-alice.jsonl"


def test_undo_restores_the_value_before(scores_task):
    store, item = RatingStore(scores_task), (scores_task.items[0].key, False)
    rate(store, scores_task, 4)
    rate(store, scores_task, 2)
    store.append("alice", "undo")
    assert store.load("alice").values[item] == {"relevance": 4}
    store.append("alice", "undo")
    store.append("alice", "undo")  # nothing is left: it has no effect
    assert store.load("alice").values[item] == {}
    store.append("alice", "skip", item=item[0], repeat=False)
    assert store.load("alice").is_decided(item, ["relevance"])
    store.append("alice", "undo")
    assert not store.load("alice").is_decided(item, ["relevance"])


def test_a_line_that_was_cut_off_is_left_out_and_does_not_damage_the_next(scores_task):
    store = RatingStore(scores_task)
    rate(store, scores_task, 4)
    (file,) = scores_task.folder.glob("ratings-*.jsonl")
    with file.open("a") as stream:
        stream.write('{"format": 1, "task": "')
    rate(store, scores_task, 3, "fluency")
    assert store.load("alice").values[scores_task.items[0].key, False] == {"relevance": 4, "fluency": 3}


def test_raters_have_their_own_files_whatever_their_names(scores_task):
    store = RatingStore(scores_task)
    names = ["alice", "Alice", "王芳", "../../etc/passwd", "a b"]
    for name in names:
        rate(store, scores_task, 4, rater=name)
    assert store.raters() == sorted(names)
    assert len(list(scores_task.folder.glob("ratings-*.jsonl"))) == len(names)
    assert not list(scores_task.folder.parent.glob("*.jsonl"))


@pytest.mark.parametrize("name", ["", "  ", "x" * 41, "a\nb\x00", "a\u202eb"])
def test_names_that_are_empty_long_or_not_printable_are_refused(name):
    assert clean_rater_name(name) is None


def test_ratings_of_another_task_are_refused(scores_task):
    store = RatingStore(scores_task)
    rate(store, scores_task, 4)
    (file,) = scores_task.folder.glob("ratings-*.jsonl")
    file.write_text(json.dumps({**json.loads(file.read_text()), "task": "other"}) + "\n")
    with pytest.raises(HarnessError, match="ratings of another task"):
        store.load("alice")


def test_a_write_that_takes_a_part_of_the_bytes_is_continued(scores_task, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    store = RatingStore(scores_task)
    rate(store, scores_task, 4)
    rate(store, scores_task, 3, "fluency")
    assert store.load("alice").values[scores_task.items[0].key, False] == {"relevance": 4, "fluency": 3}
