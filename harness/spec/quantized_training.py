"""Find the stages of a plan that would train quantized weights themselves, or merge an adapter into them."""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import HarnessError
from harness.registry import Registry
from harness.spec.plan import create_mitigations, stage_mitigations
from harness.spec.spec import Spec
from harness.types import Plan


def quantized_training_errors(spec: Spec, plan: Plan, registry: Registry) -> Iterator[HarnessError]:
    """Yield an error for each stage that would change weights which `model.quantization` quantizes.

    Args:
        spec: The spec.
        plan: Its plan.
        registry: Creates the mitigations, which say whether they add an adapter.
    """
    if spec.document["model"]["quantization"] is None:
        return
    if spec.document["model"]["dequantize"]:
        what = "model.quantization quantizes the weights that it would dequantize"
        yield HarnessError(spec.where(("model", "dequantize")), what, "remove one of them")
    where = spec.where(("model", "quantization"))
    has_experts = spec.document["model"]["quantization"]["bitsandbytes"]["experts"]
    for stage in plan.stages:
        if has_experts and stage.train["compile"]:
            what = "layers with quantized experts are not compiled"
            yield HarnessError(where, what, "set train.compile to false, or 'experts' to false")
        mitigations = create_mitigations(stage_mitigations(plan, stage), registry)
        adapters = [(name, mitigation) for name, mitigation in mitigations if mitigation.adds_adapter]
        unsuitable = [name for name, mitigation in adapters if not mitigation.supports_quantized_weights]
        if stage.adapter == "merge":
            what = f"the stage {stage.name!r} would merge an adapter into quantized weights"
            yield HarnessError(where, what, """set its 'adapter' to "continue", or remove model.quantization""")
        elif not adapters:
            what = f"the stage {stage.name!r} would train quantized weights themselves"
            yield HarnessError(where, what, 'add "lora" to the mitigations, or remove model.quantization')
        elif unsuitable:
            what = f"{unsuitable[0]!r} decomposes the weights and trains their parts, which are not quantized"
            yield HarnessError(where, what, f"replace {unsuitable[0]!r} by 'lora', or remove model.quantization")
