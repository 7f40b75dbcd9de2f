"""The built-in metrics, one module each."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_metrics import (
    base_divergence,
    bertscore,
    bits_per_byte,
    bleu,
    chrf,
    distinct,
    exact_match,
    json_valid,
    length_ratio,
    multiple_choice,
    regex,
    response_perplexity,
    rouge,
    ter,
    token_f1,
)

__all__ = ["harness_metrics"]

COMPONENT_MODULES = (
    bleu,
    rouge,
    chrf,
    exact_match,
    token_f1,
    ter,
    bertscore,
    distinct,
    length_ratio,
    regex,
    json_valid,
    multiple_choice,
    response_perplexity,
    bits_per_byte,
    base_divergence,
)


@hookimpl
def harness_metrics() -> dict[str, Component]:
    """Return the declarations of the built-in metrics, by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
