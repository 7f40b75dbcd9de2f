"""The memory that a run took, from its report."""

from __future__ import annotations

from collections.abc import Mapping

from harness.utils.formatting import format_count

KINDS = ("weights", "gradients", "optimizer", "mitigations")


def format_memory(run_info: Mapping[str, object]) -> str:
    """Return the memory of the stage with the highest peak, by kind, from the `run` of a report.

    Returns:
        E.g. `peak 2.6 GB; weights 538.1 MB, gradients 538.1 MB, optimizer 1.1 GB`; empty for a report without it.
    """
    memory = run_info.get("memory")
    stages = [stage for stage in memory.values() if _is_complete(stage)] if isinstance(memory, Mapping) else []
    if not stages:
        return ""
    largest = max(stages, key=lambda stage: int(stage["peak"]))
    kinds = [f"{kind} {format_count(largest[kind], 'B')}" for kind in KINDS if largest[kind]]
    return f"peak {format_count(largest['peak'], 'B')}; {', '.join(kinds)}"


def _is_complete(stage: object) -> bool:
    return isinstance(stage, Mapping) and all(isinstance(stage.get(kind), int) for kind in (*KINDS, "peak"))
