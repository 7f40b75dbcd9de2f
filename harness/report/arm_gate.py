"""The gate of an experiment: one arm is judged, the named one or the recommended one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.errors import HarnessError
from harness.gate import GateOutcome, GateResult, evaluate_gate, gate_outcome
from harness.report.arm_experiment import ArmExperiment


@dataclass(frozen=True)
class ArmGate:
    """The result of the gate of an experiment.

    Attributes:
        arm: The arm that is judged; None if none is recommended, or the named one has no result.
        candidates: Number of arms among which it was chosen, for which the intervals are widened; 1 if it is named.
        results: The result of every condition.
        outcome: The outcome for the judged arm; `not enough evidence` without one.
        outcomes: Arm -> its outcome if it alone had been judged, or why it cannot be judged. Decides nothing.
    """

    arm: str | None
    candidates: int
    results: tuple[GateResult, ...]
    outcome: GateOutcome
    outcomes: Mapping[str, str]

    @property
    def text(self) -> str:
        """The outcome in one sentence, without a full stop."""
        if self.arm is None:
            return f"gate: {self.outcome}: there is no arm to judge"
        chosen = f", recommended among {self.candidates}, with intervals widened for that choice"
        return f"gate: {self.outcome} by arm {self.arm!r}{chosen if self.candidates > 1 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self) | {"results": [result.to_json() for result in self.results]}


def evaluate_arm_gate(
    experiment: ArmExperiment,
    conditions: Sequence[Mapping[str, Any]],
    named: str | None,
    recommended: str | None,
    *,
    candidates: int,
) -> ArmGate | None:
    """Judge an experiment by the spec's gate; None without conditions.

    The recommended arm was chosen by the same scores. Its intervals are widened such that they hold for all candidates
    together (Bonferroni), so that any choice among them passes wrongly in at most 2.5 % of experiments.

    Args:
        experiment: The finished runs.
        conditions: The spec's gate.
        named: The arm that the spec names for the gate.
        recommended: The recommended arm, if any.
        candidates: Number of arms that could have been recommended.
    """
    if not conditions:
        return None
    outcomes: dict[str, str] = {}
    for arm in experiment.arms:
        try:
            outcomes[arm] = gate_outcome(evaluate_gate(conditions, experiment.gate_scores(arm, 1)))
        except HarnessError as error:  # an arm of an earlier run may lack a score that the gate needs today
            outcomes[arm] = f"cannot be judged: {error.what}"
    judged = named if named is not None else recommended
    if judged is None or judged not in experiment.arms or outcomes[judged].startswith("cannot"):
        return ArmGate(None, 1, (), "not enough evidence", outcomes)
    comparisons = 1 if named is not None else candidates
    results = evaluate_gate(conditions, experiment.gate_scores(judged, comparisons))
    return ArmGate(judged, comparisons, results, gate_outcome(results), outcomes)
