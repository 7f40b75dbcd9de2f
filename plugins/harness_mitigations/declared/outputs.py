"""What is declared of the mitigations that look at what the model says."""

from __future__ import annotations

from harness import Component

COMPONENTS: dict[str, Component] = {
    "kl": Component(
        summary="Holds what the model says near to what the base model says (KL; on the task's tokens: LwF).",
        factory="harness_mitigations.kl:build_kl_mitigation",
        options={
            "on": {
                "enum": ["general", "task"],
                "default": "general",
                "description": "The tokens it is held on: rows of `source`, drawn for each update, or the task's own.",
            },
            "source": {
                "type": ["string", "null"],
                "format": "source",
                "default": None,
                "description": "For general: whose training rows the model is held on.",
            },
            "rows": {
                "type": "integer",
                "minimum": 1,
                "default": 4,
                "description": "For general: rows an update, in a forward and backward pass of their own.",
            },
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 1.0,
                "description": "Factor of the divergence, which is in nats a trained token, as the loss is.",
            },
            "direction": {
                "enum": ["forward", "reverse"],
                "default": "forward",
                "description": "forward: KL(base || model), cover what the base says; reverse: KL(model || base).",
            },
            "temperature": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 1.0,
                "description": "Of both distributions; the divergence is multiplied by its square.",
            },
        },
    ),
    "token_masking": Component(
        summary="Leaves targets that surprise the model out of the loss (STM, arXiv:2501.14315).",
        factory="harness_mitigations.token_masking:TokenMasking",
        options={
            "threshold": {
                "type": "number",
                "exclusiveMinimum": 1,
                "default": 2.5,
                "description": "Perplexity above which a token is not trained.",
            },
            "quantile": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": None,
                "description": "Instead of the threshold: the share of the tokens of `source` to keep, e.g. 0.8.",
            },
            "source": {
                "type": ["string", "null"],
                "format": "source",
                "default": None,
                "description": "For the quantile: whose rows it is measured on.",
            },
            "samples": {
                "type": "integer",
                "minimum": 1,
                "default": 64,
                "description": "For the quantile: rows that it is measured on, chosen by the seed.",
            },
            "under": {
                "enum": ["base", "current"],
                "default": "base",
                "description": "Whose perplexity: of the model before training, or as it is at each update.",
            },
        },
    ),
}
