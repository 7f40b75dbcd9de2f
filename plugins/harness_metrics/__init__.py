"""The built-in metrics, one module each."""

from __future__ import annotations

from pathlib import Path

from harness import Component, ReportSection, hookimpl
from harness_metrics import (
    base_divergence,
    bertscore,
    bits_per_byte,
    bleu,
    chrf,
    classification,
    distinct,
    exact_match,
    instructions,
    json_valid,
    judge,
    length_ratio,
    lm_eval_scores,
    multiple_choice,
    numeric_match,
    pass_at_k,
    refusal,
    regex,
    response_perplexity,
    rouge,
    self_bleu,
    ter,
    token_f1,
    tool_calls,
    toxicity,
)

__all__ = ["harness_metrics", "harness_report_sections"]

COMPONENT_MODULES = (
    bleu,
    rouge,
    chrf,
    exact_match,
    token_f1,
    ter,
    bertscore,
    judge,
    distinct,
    length_ratio,
    regex,
    json_valid,
    pass_at_k,
    self_bleu,
    instructions,
    numeric_match,
    lm_eval_scores,
    classification,
    tool_calls,
    refusal,
    toxicity,
    multiple_choice,
    response_perplexity,
    bits_per_byte,
    base_divergence,
)


@hookimpl
def harness_metrics() -> dict[str, Component]:
    """Return the declarations of the built-in metrics, by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}


@hookimpl
def harness_report_sections(folder: Path) -> list[ReportSection]:
    """Return the confusion matrices of the run's classification suites."""
    from harness_metrics.confusion_matrix import build_sections

    return build_sections(folder)
