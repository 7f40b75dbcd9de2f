"""A template, a source, a mode, a mitigation, metrics, a command and a section of the report."""

from __future__ import annotations

from pathlib import Path

from harness import Command, Component, ComponentExample, ReportSection, hookimpl


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
            example=ComponentExample({"path": "rows.txt"}, {"rows.txt": "1+1?\n2\n1+2?\n3\n"}, rows=2),
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
    """Declare the metrics."""
    return {
        "answer_length": Component(
            summary="Mean number of words of the answers.",
            factory="harness_example.answer_length:AnswerLength",
        ),
        "closeness": Component(
            summary="Mean similarity of answer and reference by characters, 0 to 1.",
            factory="harness_example.closeness:Closeness",
        ),
        "prompt_nll": Component(
            summary="Mean negative log-likelihood of the prompts, per token.",
            factory="harness_example.prompt_nll:PromptNll",
        ),
        "macro_f1": Component(
            summary="Mean over the labels of the F1 of answers that are labels, 0 to 1.",
            factory="harness_example.macro_f1:MacroF1",
            options={
                "labels": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 2,
                    "description": "The labels. Any other answer is wrong.",
                },
            },
            required=("labels",),
            example=ComponentExample(options={"labels": ["the cat sat on the mat", "dogs run"]}),
        ),
        "constraints": Component(
            summary="Fraction of the constraints in each row that the answers satisfy.",
            factory="harness_example.constraints:Constraints",
            example=ComponentExample(data={"constraints": [{"type": "contains", "value": "cat"}]}),
        ),
    }


@hookimpl
def harness_commands() -> dict[str, Command]:
    """Declare the command `harness answer-lengths`."""
    return {"answer-lengths": Command("Print how long the answers of a run are.", "harness_example.lengths_command")}


@hookimpl
def harness_report_sections(folder: Path) -> list[ReportSection]:
    """Return the section with the lengths of the answers."""
    from harness_example.lengths_section import build_section

    return [build_section(folder)]
