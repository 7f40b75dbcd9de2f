"""The preparation of the arms of an experiment: the data of each arm is prepared and checked before the first one runs.

`harness check` imports this module, so it must not import what trains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.events import ArmPrepared, ArmPreparing, ArmsPrepared
from harness.model.cached_tokenizer import SharedLightTokenizers
from harness.registry import Registry
from harness.runner.prepare import PreparedRun, prepare_checked_run
from harness.spec.arms import Arm, arm_error_context
from harness.spec.spec import Spec


def prepare_arms(
    arm_specs: Sequence[tuple[Arm, Spec]],
    registry: Registry,
    processes: Processes = SINGLE_PROCESS,
    *,
    loads_model: bool = True,
) -> Iterator[tuple[Arm, Spec, PreparedRun]]:
    """Prepare and check the data of every arm.

    Args:
        arm_specs: The arms with their specs.
        registry: The components and listeners.
        processes: The processes that will train: a step takes rows for each of them.
        loads_model: Whether the arms will run. If not, arms with the same model share a light tokenizer.

    Yields:
        Each arm with its spec and its prepared data.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
    """
    load_light = None if loads_model else SharedLightTokenizers()
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
    arm_specs: Sequence[tuple[Arm, Spec]], registry: Registry, processes: Processes = SINGLE_PROCESS
) -> None:
    """Prepare and check the data of every arm, and keep nothing.

    Args:
        arm_specs: The arms with their specs.
        registry: The components and listeners.
        processes: The processes that will train: a step takes rows for each of them.

    Raises:
        HarnessError: If an arm is invalid; the error names the arm.
    """
    for _ in prepare_arms(arm_specs, registry, processes, loads_model=False):
        pass
