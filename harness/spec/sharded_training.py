"""Find the stages of a plan that would train sharded weights with something that needs whole ones."""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import HarnessError
from harness.registry import Registry
from harness.spec.plan import create_mitigations, stage_mitigations
from harness.spec.spec import Spec
from harness.types import Plan, Stage

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
        if stage.train["sharding"] is not None:
            for what, remedy in sharding_obstacles(plan, stage, registry):
                yield HarnessError(where, what, f"{remedy}, or {HINT}")
        elif stage.train["offload_shards"]:
            what = "there are no shards without train.sharding"
            hint = "set train.sharding to 'fsdp2', or train.offload_shards to false"
            yield HarnessError(spec.where(("train", "offload_shards")), what, hint)


def sharding_obstacles(plan: Plan, stage: Stage, registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield everything in a stage that needs whole weights, and what to do about it.

    Args:
        plan: The plan.
        stage: A stage of it, with or without `train.sharding`.
        registry: See `sharded_training_errors`.
    """
    for name, mitigation in create_mitigations(stage_mitigations(plan, stage), registry):
        if not mitigation.works_on_shards:
            yield f"the mitigation {name!r} reads or changes whole weights, or runs the model again", "remove it"
    ((optimizer, options),) = stage.train["optimizer"].items()
    if not registry.create("optimizers", optimizer, options).works_on_shards:
        yield f"the optimizer {optimizer!r} needs whole weights", "use 'adamw' or 'lion'"
    if stage.train["compile"]:
        yield "sharded layers are not compiled", "set train.compile to false"
    if stage.train["precision"] == "float16":
        yield "the loss scale of float16 needs whole gradients", "set train.precision to 'bfloat16'"
    quantization = plan.model.get("quantization")
    if quantization is not None and quantization["bitsandbytes"]["bits"] == 8:
        yield "weights of 8 bits cannot be divided", "set model.quantization.bitsandbytes.bits to 4"
