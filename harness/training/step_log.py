"""What is written down about a stage: one entry every `log_steps` updates, and what the whole stage came to."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.mixing.packing import PackedSequences
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.types import Progress, StageDataset, TokenizedExample

OnStep = Callable[[int, Mapping[str, float]], None]


class StepLog:
    """Entries of a stage as it is trained.

    An entry holds, averaged over the updates since the last one, `loss` (nats a trained token, the task's alone,
    before the update), `grad_norm` (before clipping: the task's, and that of pulls that are clipped with it; left out
    where loss scaling met no finite one), each `penalty/<name>` and, once, the facts of the mitigations; and
    `learning_rate` (of this update), `tokens_per_second` (prompt and response, without padding, since the last entry)
    and `epoch` (passes done, a fraction within one).

    data: of the stage. sequences_per_step: of all processes together. steps: updates.
    """

    def __init__(
        self,
        data: StageDataset,
        sequences_per_step: int,
        steps: int,
        log_steps: int,
        progress: Progress,
        on_step: OnStep,
    ) -> None:
        self.steps, self.log_steps = steps, log_steps
        self.sequences_per_step, self.sequence_count = sequences_per_step, len(data.order)
        self.epoch_ends = data.epoch_ends
        self.progress, self.on_step = progress, on_step
        lengths = np.cumsum(PackedSequences.from_sequences(data.order).sum_sizes(_row_lengths(data.rows)))
        self._tokens = np.concatenate([np.zeros(1, dtype=np.int64), lengths])  # upto each slot
        self.losses: list[float] = []
        self.entries: list[Mapping[str, float]] = []
        self._pending: list[Mapping[str, float]] = []
        self._since = (time.perf_counter(), 0)
        self._rate = 0.0

    def start(self) -> None:
        """Start the clock: the first update is about to be computed."""
        self._since = (time.perf_counter(), len(self.losses))
        self.progress("train", len(self.losses), self.steps, "", "steps")

    def log_step(self, learning_rate: float, values: Mapping[str, float]) -> None:
        """Write down one update. values: `loss`, `grad_norm` and each `penalty/<name>` of it."""
        self.losses.append(values["loss"])
        self._pending.append(values)
        self._rate = learning_rate
        step = len(self.losses)
        speed = self._tokens_per_second(step)
        if step % self.log_steps == 0 or step == self.steps:
            self._add_entry(step, learning_rate)
        self.progress("train", step, self.steps, f"loss {values['loss']:.3g} · {speed:.0f} tokens/s", "steps")

    def _tokens_per_second(self, step: int) -> float:
        then, logged = self._since
        return (self.tokens_until(step) - self.tokens_until(logged)) / max(time.perf_counter() - then, 1e-9)

    def _add_entry(self, step: int, learning_rate: float) -> None:
        names = dict.fromkeys(name for pending in self._pending for name in pending)
        entry = {name: fmean(old[name] for old in self._pending if name in old) for name in names}
        speed = self._tokens_per_second(step)
        entry |= {"learning_rate": learning_rate, "tokens_per_second": speed, "epoch": self.epoch_at(step)}
        self.entries.append({"step": step, **entry})
        self._pending, self._since = [], (time.perf_counter(), step)
        self.on_step(step, entry)

    def finish(self) -> None:
        """The last update was made, be it before its time."""
        step = len(self.losses)
        if step < self.steps:
            if self._pending:
                self._add_entry(step, self._rate)
            self.progress("train", step, step, f"ended after {step} of {self.steps} updates", "steps")

    def state_dict(self) -> dict[str, Any]:
        """All that was written down, for a checkpoint."""
        return {"losses": self.losses, "entries": self.entries, "pending": self._pending, "rate": self._rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, before `start`; entries that were heard already are not told again."""
        self.losses, self.entries, self._pending = (list(state[key]) for key in ("losses", "entries", "pending"))
        self._rate = float(state.get("rate", 0.0))

    def tokens_until(self, step: int) -> int:
        """Tokens of the first `step` updates, without padding."""
        return int(self._tokens[min(step * self.sequences_per_step, self.sequence_count)])

    def epoch_at(self, step: int) -> float:
        """Passes over the mixture after `step` updates."""
        done = min(step * self.sequences_per_step, self.sequence_count)
        index = bisect.bisect_left(self.epoch_ends, done)
        if index == len(self.epoch_ends):  # beyond the last whole pass
            return float(index)
        start = self.epoch_ends[index - 1] if index else 0
        return index + (done - start) / (self.epoch_ends[index] - start)

    def final_loss(self) -> float:
        """The mean loss of the last tenth of the updates, one at least."""
        return fmean(self.losses[-max(1, len(self.losses) // 10) :])


def _row_lengths(rows: Sequence[TokenizedExample]) -> NDArray[Any]:
    """(N,) tokens of each row, without making the rows where they are not in memory."""
    return rows.lengths if isinstance(rows, TokenizedRows) else np.array([len(row.input_ids) for row in rows])
