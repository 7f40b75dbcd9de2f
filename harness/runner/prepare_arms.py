"""The preparation of the arms of an experiment: the data of each arm is prepared and checked before the first one runs.

`harness check` imports this module, so it must not import what trains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.events import ArmPrepared, ArmPreparing, ArmsPrepared
from harness.model.cached_tokenizer import load_light_tokenizer
from harness.registry import Registry
from harness.runner.prepare import PreparedRun, TokenizerLoader, prepare_checked_run
from harness.spec.arms import Arm, arm_error_context
from harness.spec.spec import Spec


def iter_prepared_arms(
    arm_specs: Sequence[tuple[Arm, Spec]],
    registry: Registry,
    processes: Processes = SINGLE_PROCESS,
    *,
    load_light: TokenizerLoader | None = None,
) -> Iterator[tuple[Arm, Spec, PreparedRun]]:
    """Prepare and check the data of every arm.

    Args:
        arm_specs: The arms with their specs.
        registry: The components and listeners.
        processes: The processes that will train: a step takes rows for each of them.
        load_light: As for `prepare_run`; None if the arms will run.

    Yields:
        Each arm with its spec and its prepared data.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
    """
    for number, (arm, arm_spec) in enumerate(arm_specs, start=1):
        registry.emit(ArmPreparing(arm=arm.name, number=number, of=len(arm_specs), method=arm.method))
        started_at = time.monotonic()
        with arm_error_context(arm):
            prepared = prepare_checked_run(arm_spec, registry, load_light=load_light, processes=processes)
        counts = prepared.data.counts.values()
        registry.emit(
            ArmPrepared(
                arm=arm.name,
                number=number,
                of=len(arm_specs),
                used=sum(count.get("used", 0) for count in counts),
                evaluated=sum(count.get("evaluated", 0) for count in counts),
                seconds=time.monotonic() - started_at,
            )
        )
        yield arm, arm_spec, prepared
    registry.emit(ArmsPrepared())


def check_arms(
    arm_specs: Sequence[tuple[Arm, Spec]],
    registry: Registry,
    processes: Processes = SINGLE_PROCESS,
    *,
    load_light: TokenizerLoader = load_light_tokenizer,
) -> None:
    """Prepare and check the data of every arm, and keep nothing. No arm will run.

    Args:
        arm_specs: The arms with their specs.
        registry: The components and listeners.
        processes: The processes that will train: a step takes rows for each of them.
        load_light: As for `prepare_run`. Arms share their tokenizers if it is a `SharedLightTokenizers`.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
    """
    for _ in iter_prepared_arms(arm_specs, registry, processes, load_light=load_light):
        pass
