"""One component of each kind: a template, a source, a mode, a mitigation and a metric."""

from __future__ import annotations

from harness import Component, hookimpl


@hookimpl
def harness_templates() -> dict[str, Component]:
    """Declare the template."""
    return {
        "dialogue": Component(
            summary="Speakers by name, as in a play: [Ann] … [/Ann].",
            factory="harness_example.dialogue:Dialogue",
            options={
                "speaker": {"type": "string", "default": "Answer", "description": "What the assistant is called."},
            },
        )
    }


@hookimpl
def harness_sources() -> dict[str, Component]:
    """Declare the source."""
    return {
        "pairs": Component(
            summary="Reads question and answer from every two lines of a text file.",
            factory="harness_example.pairs:Pairs",
            options={"path": {"type": "string", "format": "path", "description": "The text file."}},
            required=("path",),
        )
    }


@hookimpl
def harness_modes() -> dict[str, Component]:
    """Declare the mode."""
    return {
        "sandwich": Component(
            summary="General conversations, then the domain, then general ones again.",
            factory="harness_example.sandwich:Sandwich",
            options={
                "bread": {"type": "string", "format": "source", "description": "The general source."},
                "filling": {"type": "string", "format": "source", "description": "The source of the domain."},
            },
            required=("bread", "filling"),
        )
    }


@hookimpl
def harness_mitigations() -> dict[str, Component]:
    """Declare the mitigation."""
    return {
        "short_stages": Component(
            summary="Ends every stage after a number of optimizer steps.",
            factory="harness_example.short_stages:ShortStages",
            options={
                "steps": {
                    "type": "integer",
                    "minimum": 1,
                    "default": 10,
                    "description": "Optimizer steps of each stage.",
                },
            },
            typical_ranges={"train.learning_rate": (1e-6, 1e-5)},
        )
    }


@hookimpl
def harness_metrics() -> dict[str, Component]:
    """Declare the metric."""
    return {
        "answer_length": Component(
            summary="Mean number of words of the answers.",
            factory="harness_example.answer_length:AnswerLength",
        )
    }
