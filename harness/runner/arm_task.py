"""What a process that runs one arm of an experiment receives and returns: plain data. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError

LOG_FILE = "worker.log"
"""The output of the process that runs an arm, in the arm's folder."""


@dataclass(frozen=True)
class ArmTask:
    """One arm, for a process that another process has started.

    Attributes:
        working_directory: The working directory of the main process.
        experiment: The path of the experiment's folder, absolute or relative to the working directory.
        arm: Name of the arm.
        earlier: Name of an earlier arm that has ended -> number of common first stages.
        stages_to_keep: Number of first stages whose snapshots stay, for later arms.
        parent: MLflow id of the experiment's run.
        tracked: Whether MLflow has the experiment.
        is_prepared: Whether the main process has prepared the arm's data, and has shown its warnings.
        environment: Environment variables that the process sets first.
    """

    working_directory: str
    experiment: str
    arm: str
    earlier: Mapping[str, int]
    stages_to_keep: int
    parent: str | None
    tracked: bool
    is_prepared: bool
    environment: Mapping[str, str]


@dataclass(frozen=True)
class ArmOutcome:
    """How an arm ended.

    Attributes:
        failure: Why it failed, without its location and remedy; None if it has a result.
        error: The error of a failed arm, one line.
        reused: Whether the arm had its result before.
        warnings: Text and rows of each warning, if the arm ran in another process.
        is_interrupted: Whether a signal stopped the arm.
    """

    failure: str | None = None
    error: str = ""
    reused: bool = False
    warnings: Sequence[tuple[str, Sequence[str]]] = ()
    is_interrupted: bool = False

    @classmethod
    def of_error(cls, error: HarnessError) -> ArmOutcome:
        """Return the outcome of an arm that failed with this error."""
        return cls(error.what, str(error))
