"""What is written down about a stage: one entry every `log_steps` updates, and what the whole stage came to."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from statistics import fmean

from harness.contracts import Progress, StageData

OnStep = Callable[[int, Mapping[str, float]], None]


class StageLog:
    """Entries of a stage as it is trained.

    An entry holds, averaged over the updates since the last one, `loss` (nats a trained token, the task's alone,
    before the update), `grad_norm` (before clipping, the task's alone) and each `penalty/<name>`; and `learning_rate`
    (of this update), `tokens_per_second` (prompt and response, without padding, since the last entry) and `epoch`
    (passes done, a fraction within one).

    data: of the stage. slots_per_update: of all processes together. steps: updates.
    """

    def __init__(
        self, data: StageData, slots_per_update: int, steps: int, log_steps: int, progress: Progress, on_step: OnStep
    ) -> None:
        self.steps, self.log_steps = steps, log_steps
        self.slots_per_update, self.slots = slots_per_update, len(data.order)
        self.epoch_ends = data.epoch_ends
        self.progress, self.on_step = progress, on_step
        lengths = [sum(len(data.rows[row].input_ids) for row in slot) for slot in data.order]
        self._tokens = [0, *accumulate(lengths)]
        self.losses: list[float] = []
        self.entries: list[Mapping[str, float]] = []
        self._pending: list[Mapping[str, float]] = []
        self._since = (time.perf_counter(), 0)

    def begin(self) -> None:
        """Start the clock: the first update is about to be computed."""
        self._since = (time.perf_counter(), len(self.losses))
        self.progress("train", len(self.losses), self.steps, "", "steps")

    def update(self, learning_rate: float, values: Mapping[str, float]) -> None:
        """Write down one update. values: `loss`, `grad_norm` and each `penalty/<name>` of it."""
        self.losses.append(values["loss"])
        self._pending.append(values)
        step = len(self.losses)
        now, (then, logged) = time.perf_counter(), self._since
        speed = (self.tokens(step) - self.tokens(logged)) / max(now - then, 1e-9)
        if step % self.log_steps == 0 or step == self.steps:
            names = dict.fromkeys(name for pending in self._pending for name in pending)
            entry = {name: fmean(old[name] for old in self._pending if name in old) for name in names}
            entry |= {"learning_rate": learning_rate, "tokens_per_second": speed, "epoch": self.epoch(step)}
            self.entries.append({"step": step, **entry})
            self._pending, self._since = [], (now, step)
            self.on_step(step, entry)
        self.progress("train", step, self.steps, f"loss {values['loss']:.3g} · {speed:.0f} tokens/s", "steps")

    def tokens(self, step: int) -> int:
        """Tokens of the first `step` updates, without padding."""
        return self._tokens[min(step * self.slots_per_update, self.slots)]

    def epoch(self, step: int) -> float:
        """Passes over the mixture after `step` updates."""
        done = min(step * self.slots_per_update, self.slots)
        index = bisect.bisect_left(self.epoch_ends, done)
        if index == len(self.epoch_ends):  # beyond the last whole pass
            return float(index)
        start = self.epoch_ends[index - 1] if index else 0
        return index + (done - start) / (self.epoch_ends[index] - start)

    def final_loss(self) -> float:
        """The mean loss of the last tenth of the updates, one at least."""
        return fmean(self.losses[-max(1, len(self.losses) // 10) :])
