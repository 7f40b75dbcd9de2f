"""Log a stage: one entry every `log_steps` steps, and the totals of the stage."""

from __future__ import annotations

import bisect
import math
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
"""Called with a step and its metrics."""


class StepLog:
    """Collects the log entries of a stage while it is trained.

    Averaged over the steps since the last entry, an entry holds

    - `loss`: nats per trained token, of the task only, before the step;
    - `nll`: the same without weights of tokens, if a mitigation has them, see `Mitigation.token_weights`;
    - `grad_norm`: norm before clipping, of the task's gradient and of penalties that are clipped with it; missing where
      loss scaling met no finite norm;
    - `skipped`, where a loss or gradient was not finite and the step changed no weight (`train.skip_nonfinite`);
    - `batch_parts`, where micro-batches are divided because memory ran out (`train.halve_batches`);
    - `penalty/<name>` of each mitigation and, once per stage, the mitigations' stage stats.

    It also holds `learning_rate` (of its last step), `tokens_per_second` (prompt and response, without padding, since
    the last entry) and `epoch` (passes over the mixture; a fraction within a pass).
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
        """Prepare the log.

        Args:
            data: The rows of the stage.
            sequences_per_step: Packed sequences per step, of all processes together.
            steps: The number of steps.
            log_steps: The number of steps between two entries.
            progress: Called after every step.
            on_step: Called with each entry.
        """
        self.stage_name = data.stage.name
        self.steps, self.log_steps = steps, log_steps
        self.sequences_per_step, self.sequence_count = sequences_per_step, len(data.order)
        self.epoch_ends = data.epoch_ends
        self.progress, self.on_step = progress, on_step
        lengths = np.cumsum(PackedSequences.from_sequences(data.order).sum_sizes(row_lengths(data.rows)))
        self._tokens_before = np.concatenate([np.zeros(1, dtype=np.int64), lengths])  # tokens before each sequence
        self.skipped_steps = 0
        self._created, self._earlier_seconds = time.perf_counter(), 0.0
        self.losses: list[float] = []
        self.entries: list[Mapping[str, float]] = []
        self._pending: list[Mapping[str, float]] = []
        self._last_entry_time, self._last_entry_step = time.perf_counter(), 0
        self._learning_rate = 0.0

    def start(self) -> None:
        """Start the clock, before the first step is computed."""
        self._last_entry_time, self._last_entry_step = time.perf_counter(), len(self.losses)
        self.progress("train", len(self.losses), self.steps, "", "steps")

    def log_step(self, learning_rate: float, metrics: Mapping[str, float]) -> None:
        """Log one step.

        Args:
            learning_rate: Of this step.
            metrics: Its `loss`, `grad_norm` and each `penalty/<name>`.
        """
        self.losses.append(metrics["loss"])
        self._pending.append(metrics)
        self._learning_rate = learning_rate
        step = len(self.losses)
        speed = self._tokens_per_second(step)
        if step % self.log_steps == 0 or step == self.steps:
            self._add_entry(step)
        self.progress("train", step, self.steps, f"loss {metrics['loss']:.3g} · {speed:.0f} tokens/s", "steps")

    def finish(self) -> None:
        """Add an entry for pending steps when the stage ended early."""
        step = len(self.losses)
        if step < self.steps:
            if self._pending:
                self._add_entry(step)
            self.progress("train", step, step, f"ended after {step} of {self.steps} steps", "steps")

    @property
    def seconds(self) -> float:
        """Seconds since the log was created; of a resumed stage with those up to its checkpoint."""
        return self._earlier_seconds + time.perf_counter() - self._created

    def state_dict(self) -> dict[str, Any]:
        """Return the log's state, for a checkpoint."""
        return {
            "losses": self.losses,
            "entries": self.entries,
            "pending": self._pending,
            "rate": self._learning_rate,
            "skipped": self.skipped_steps,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, before `start`; `on_step` is not called again for past entries."""
        self.losses, self.entries, self._pending = (list(state[key]) for key in ("losses", "entries", "pending"))
        self._learning_rate = float(state.get("rate", 0.0))
        self.skipped_steps = int(state.get("skipped", 0))
        self._earlier_seconds = float(state.get("seconds", 0.0))

    def tokens_until(self, step: int) -> int:
        """Return the tokens of the first `step` steps, without padding."""
        return int(self._tokens_before[min(step * self.sequences_per_step, self.sequence_count)])

    def epoch_at(self, step: int) -> float:
        """Return the passes over the mixture after `step` steps."""
        sequences_done = min(step * self.sequences_per_step, self.sequence_count)
        epoch = bisect.bisect_left(self.epoch_ends, sequences_done)
        if epoch == len(self.epoch_ends):  # after the last complete pass
            return float(epoch)
        epoch_start = self.epoch_ends[epoch - 1] if epoch else 0
        return epoch + (sequences_done - epoch_start) / (self.epoch_ends[epoch] - epoch_start)

    def final_loss(self) -> float:
        """Return the mean loss of the last tenth of the steps, at least of one; skipped steps do not count."""
        finite = [loss for loss in self.losses if math.isfinite(loss)] or [math.nan]
        return fmean(finite[-max(1, len(finite) // 10) :])

    def _tokens_per_second(self, step: int) -> float:
        tokens = self.tokens_until(step) - self.tokens_until(self._last_entry_step)
        return tokens / max(time.perf_counter() - self._last_entry_time, 1e-9)

    def _add_entry(self, step: int) -> None:
        names = dict.fromkeys(name for metrics in self._pending for name in metrics)
        entry = {name: fmean(metrics[name] for metrics in self._pending if name in metrics) for name in names}
        entry |= {
            "learning_rate": self._learning_rate,
            "tokens_per_second": self._tokens_per_second(step),
            "epoch": self.epoch_at(step),
        }
        self.entries.append({"step": step, **entry})
        self._pending = []
        self._last_entry_time, self._last_entry_step = time.perf_counter(), step
        self.on_step(step, entry)


def row_lengths(rows: Sequence[TokenizedExample]) -> NDArray[Any]:
    """Return the tokens of each row, (N,); rows on disk are not read for it."""
    return rows.lengths if isinstance(rows, TokenizedRows) else np.array([len(row.input_ids) for row in rows])
