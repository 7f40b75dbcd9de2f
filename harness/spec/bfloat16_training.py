"""Find the stages of a plan that would train weights in bfloat16 with something that needs them in float32."""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import HarnessError
from harness.registry import Registry
from harness.spec.plan import create_mitigations, stage_mitigations
from harness.spec.spec import Spec
from harness.types import Plan

HINT = "set train.weights to 'float32'"


def bfloat16_training_errors(spec: Spec, plan: Plan, registry: Registry) -> Iterator[HarnessError]:
    """Yield an error for everything that a run with `train.weights` bfloat16 cannot have.

    Args:
        spec: The spec.
        plan: Its plan.
        registry: Creates mitigations and optimizers, which say whether they work on parts of weights.
    """
    if plan.train["weights"] == "float32":
        return
    where = spec.where(("train", "weights"))
    precision = plan.train["precision"]
    if precision not in ("auto", "bfloat16"):
        what = f"weights in bfloat16 are not computed with in {precision}"
        yield HarnessError(where, what, f"set train.precision to 'bfloat16', or {HINT}")
    for stage in plan.stages:
        for name, mitigation in create_mitigations(stage_mitigations(plan, stage), registry):
            if mitigation.adds_adapter:
                yield HarnessError(where, f"the adapter of {name!r} is trained in float32", HINT)
            elif not mitigation.works_on_shards:
                what = f"the mitigation {name!r} reads or changes trained weights, which it expects in float32"
                yield HarnessError(where, what, f"remove it, or {HINT}")
        if stage.train["sharding"] is not None:
            yield HarnessError(where, "weights in bfloat16 are not sharded", f"set train.sharding to null, or {HINT}")
        ((optimizer, options),) = stage.train["optimizer"].items()
        if not registry.create("optimizers", optimizer, options).works_on_shards:
            what = f"the optimizer {optimizer!r} needs all weights at once"
            yield HarnessError(where, what, f"use 'adamw' or 'lion', or {HINT}")
