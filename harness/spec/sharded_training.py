"""Find the stages of a plan that would train sharded weights with something that needs whole ones."""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import HarnessError
from harness.registry import Registry
from harness.spec.plan import create_mitigations, stage_mitigations
from harness.spec.spec import Spec
from harness.types import Plan

HINT = "set train.sharding to null"


def sharded_training_errors(spec: Spec, plan: Plan, registry: Registry) -> Iterator[HarnessError]:
    """Yield an error for everything that a stage with `train.sharding` cannot have.

    Args:
        spec: The spec.
        plan: Its plan.
        registry: Creates mitigations and optimizers, which say whether they work on parts of weights.
    """
    where = spec.where(("train", "sharding"))
    for stage in plan.stages:
        if stage.train["sharding"] is None:
            if stage.train["offload_shards"]:
                what = "there are no shards without train.sharding"
                hint = "set train.sharding to 'fsdp2', or train.offload_shards to false"
                yield HarnessError(spec.where(("train", "offload_shards")), what, hint)
            continue
        for name, mitigation in create_mitigations(stage_mitigations(plan, stage), registry):
            if not mitigation.works_on_shards:
                what = f"the mitigation {name!r} reads or changes whole weights, or runs the model again"
                yield HarnessError(where, what, f"remove it, or {HINT}")
        ((optimizer, options),) = stage.train["optimizer"].items()
        if not registry.create("optimizers", optimizer, options).works_on_shards:
            what = f"the optimizer {optimizer!r} needs whole weights"
            yield HarnessError(where, what, f"use 'adamw' or 'lion', or {HINT}")
        if stage.train["compile"]:
            yield HarnessError(where, "sharded layers are not compiled", f"set train.compile to false, or {HINT}")
        if stage.train["precision"] == "float16":
            what = "the loss scale of float16 needs whole gradients"
            yield HarnessError(where, what, f"set train.precision to 'bfloat16', or {HINT}")
    quantization = spec.document["model"]["quantization"]
    is_sharded = any(stage.train["sharding"] is not None for stage in plan.stages)
    if is_sharded and quantization is not None and quantization["bitsandbytes"]["bits"] == 8:
        what = "weights of 8 bits cannot be divided"
        yield HarnessError(where, what, f"set model.quantization.bitsandbytes.bits to 4, or {HINT}")
