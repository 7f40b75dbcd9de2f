"""Code that computes for too long is stopped; code that waits or ends in time is not."""

from __future__ import annotations

import time

import pytest

from harness.utils.time_limit import cpu_time_limit


def late():
    return ValueError("too late")


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no CPU time of single threads")
def test_an_endless_loop_is_stopped_although_it_handles_exceptions():
    def loop():
        while True:
            try:
                sum(range(100))
            except Exception:
                continue

    with pytest.raises(ValueError, match="too late"), cpu_time_limit(0.05, late):
        loop()


def test_what_ends_in_time_returns_and_what_follows_is_not_stopped():
    with cpu_time_limit(0.05, late):
        value = 1
    end = time.thread_time() + 0.6
    while time.thread_time() < end:
        value += 1
    assert value > 1


def test_waiting_does_not_count():
    with cpu_time_limit(0.05, late):
        time.sleep(0.5)


def test_errors_of_the_code_pass_unchanged():
    with pytest.raises(KeyError), cpu_time_limit(5, late):
        raise KeyError("own")
