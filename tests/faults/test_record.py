"""An interrupted round is continued after the tries that its record has."""

from __future__ import annotations

import contextlib
import random

import pytest

from faults.record import Record
from faults.results import Section
from faults.round import SHORT, Round


def test_recorded_tries_are_counted_and_not_repeated(tmp_path):
    file = tmp_path / "record.jsonl"
    record, section = Record(file, 7), Section("kills")
    with record.one_try(section, 0):
        section.add("equal")
        section.counts["signals sent"] += 2
    with record.one_try(section, 1):
        section.add("unequal", "plain: model differs")
    with file.open("a") as lines:
        lines.write('{"section": "kills", "index": 2, "tri')
    restored = Section("kills")
    assert Record(file, 7).restore(restored) == 2
    assert (restored.tries, restored.counts, restored.failures) == (2, section.counts, ["plain: model differs"])
    assert Record(file, 7).restore(Section("other")) == 0
    assert Record(file, 8).restore(Section("kills")) == 0, "another seed"
    assert file.read_text().count("\n") == 2, "the incomplete line is gone"


@pytest.fixture
def new_round(tmp_path, monkeypatch):
    monkeypatch.setattr("faults.round.write_workbench", lambda folder: folder)
    monkeypatch.setattr("faults.round.ENVIRONMENT", {})
    monkeypatch.setenv("HARNESS_CACHE", "")
    record = tmp_path / "record.jsonl"
    return lambda: Round(tmp_path / "work", SHORT, seed=3, limit=60.0, record=record)


def test_a_round_in_pieces_draws_the_same_as_one_without_a_break(new_round):
    def repeat(count, stops_at=None):
        tried, draw, drawn = new_round(), random.Random(), []
        section = tried._section("kills")

        def act(index):
            if index == stops_at:
                raise KeyboardInterrupt
            drawn.append(draw.random())
            section.add("equal")

        with contextlib.suppress(KeyboardInterrupt):
            tried._repeat(section, count, draw, act)
        return drawn, section.tries

    first, _ = repeat(5, stops_at=2)
    rest, tries = repeat(5)
    assert (len(first), len(rest), tries) == (2, 3, 5)
    assert len(set(first + rest)) == 5
    draw = random.Random()
    for index, number in enumerate(first + rest):
        draw.seed(f"3 kills {index}")
        assert draw.random() == number
