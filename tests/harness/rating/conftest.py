"""Runs with stored answers, and tasks that rate them."""

from __future__ import annotations

import pytest
from support import run_folders

from harness.rating.rated_answers import find_rated_models
from harness.rating.store import RatingStore
from harness.rating.task import TaskRequest, open_task


@pytest.fixture
def write_run(tmp_path):
    """Write a run whose answers name it, so that a test can look for its name; return its folder."""

    def write_run(name="first", **options):
        def add_name(text):
            return f"{text} by {name}" if "says" in text or "answer" in text else text

        return run_folders.write_run(tmp_path / "runs" / name, **{"text": add_name, "num_steps": 3, **options})

    return write_run


@pytest.fixture
def scores_task(write_run):
    """A task that grades the answers of one run."""
    return open_task(find_rated_models([write_run()], with_base=False), TaskRequest(items=12, seed=3))


@pytest.fixture
def comparison_task(write_run):
    """A task that compares two runs."""
    models = find_rated_models([write_run("first"), write_run("second")], with_base=False)
    return open_task(models, TaskRequest(items=40))


@pytest.fixture
def rate_all():
    """Rate every item of a task as one rater, without a server."""

    def rate_all(task, rater, value_of, *, repeats=True):
        store = RatingStore(task)
        for showing in task.showings(rater):
            if showing.repeat and not repeats:
                continue
            shown = {"item": showing.item.key, "repeat": showing.repeat}
            for dimension in task.dimensions:
                value = value_of(showing, dimension.key)
                store.append(rater, "rate", **shown, dimension=dimension.key, value=value, left=showing.left)
        return store

    return rate_all
