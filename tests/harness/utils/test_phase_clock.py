"""The phases of a run: exclusive, complete, and in the report."""

from __future__ import annotations

import pytest

from harness.utils import phase_clock
from harness.utils.formatting import format_phases
from harness.utils.phase_clock import PhaseClock, phases_of_run_info


@pytest.fixture
def now(monkeypatch):
    """The time, which a test moves."""
    times = [100.0]
    monkeypatch.setattr(phase_clock.time, "monotonic", lambda: times[0])

    def move(seconds):
        times[0] += seconds

    return move


def test_a_phase_within_another_one_interrupts_it(now):
    clock = PhaseClock()
    clock.add("prepare", 3.0)
    now(50)  # in no phase
    with clock.phase("write"):
        now(1)
        with clock.phase("train"):
            now(10)
            with clock.phase("evaluate"):
                now(5)
            now(20)
        now(2)
        assert clock.seconds() == {"prepare": 3.0, "evaluate": 5.0, "train": 30.0, "write": 3.0}
        now(4)
    now(50)
    assert clock.seconds()["write"] == 7.0
    assert list(clock.seconds()) == ["prepare", "evaluate", "train", "write"]


def test_time_before_a_failure_counts(now):
    clock = PhaseClock()

    def fail():
        now(2)
        raise ValueError("failed")

    with clock.phase("write"):
        with pytest.raises(ValueError, match="failed"), clock.phase("train"):
            fail()
        now(1)
    assert clock.seconds() == {"train": 2.0, "write": 1.0}


def test_phases_of_a_report_are_read_and_formatted():
    assert phases_of_run_info({"seconds": 3}) == {}
    phases = phases_of_run_info({"phases": {"prepare": 2.14, "train": 185, "write": None}})
    assert format_phases(phases) == "prepare 2.1 s, train 3 min 05 s"
