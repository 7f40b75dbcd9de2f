"""The words and tables for what happened in a run. Knows events; prints nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.contracts import Evaluation, Part, Plan, Stage
from harness.legible import duration, number, one_line

UNITS = {"rows": "rows", "tokens": "tokens", "loss_tokens": "loss tokens"}


def start(data: Mapping[str, Any]) -> Text:
    """The line for `run_started`."""
    plan: Plan = data["plan"]
    stages = len(plan.stages)
    facts = f"{stages} {'stage' if stages == 1 else 'stages'}, {', '.join(plan.mitigations) or 'no mitigation'}"
    return Text.assemble((one_line(plan.name), "bold"), f": {facts} → ", (one_line(str(data["folder"])), "cyan"))


def data(facts: Mapping[str, Any], plan: Plan | None) -> Iterator[RenderableType]:
    """For `data`: a table of what each source gave, and the realised shares of each stage beside those asked for."""
    counts: Mapping[str, Mapping[str, int]] = facts["counts"]
    columns = list(dict.fromkeys(key for one in counts.values() for key in one))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("source")
    for column in columns:
        table.add_column(Text(column.replace("_", " ")), justify="right")
    for source, one in counts.items():
        table.add_row(Text(one_line(source)), *(f"{one[key]:,}" if key in one else "" for key in columns))
    yield table
    stages: Sequence[Stage] = facts.get("stages", plan.stages if plan is not None else ())
    for stage, shares, efficiency in zip(stages, facts["shares"], facts["efficiency"], strict=True):
        yield _shares(stage, shares, efficiency)


def scores(stage: int, evaluations: Sequence[Evaluation]) -> Iterator[Text]:
    """One line a suite for `evaluated`."""
    for one in evaluations:
        found = "  ".join(f"{one_line(score.name)} {number(score.value)}" for score in one.scores)
        yield Text.assemble(
            ("base" if stage == 0 else f"stage {stage}", "dim"), f"  {one_line(one.suite)}  ", (found, "")
        )


def stage_start(number_: int, facts: Mapping[str, Any], plan: Plan | None) -> Text:
    """The line for `stage_started`."""
    of = f" of {len(plan.stages)}" if plan is not None else ""
    return Text.assemble(
        (f"stage {number_}{of}: {one_line(facts['stage'].name)}", "bold"), f", {facts['steps']:,} updates"
    )


def stage_end(facts: Mapping[str, Any]) -> Text:
    """The line for `stage_finished`."""
    trained = facts["trained"]
    speed = f", {trained.tokens / trained.seconds:,.0f} tokens/s" if trained.seconds > 0 else ""
    return Text(
        f"{one_line(facts['stage'].name)}: {trained.steps:,} updates in {duration(trained.seconds)}, "
        f"loss {number(trained.loss)}, {trained.tokens:,} tokens{speed}"
    )


def _shares(stage: Stage, shares: Mapping[str, Mapping[str, float]], efficiency: float) -> Text:
    # The shares that were asked for first: they are what a reader checks.
    parts = sorted(stage.parts, key=lambda part: part.share is None)
    said = ", ".join(_share(part, shares.get(part.source, {})) for part in parts)
    return Text(f"{one_line(stage.name)}: {said}; {_percent(efficiency)} of the token slots hold text")


def _share(part: Part, realised: Mapping[str, float]) -> str:
    if part.unit not in realised:
        return f"{one_line(part.source)} without any row"
    asked = "" if part.share is None else f" (asked {100 * part.share:g} %)"
    return f"{one_line(part.source)} {_percent(realised[part.unit])} of {UNITS[part.unit]}{asked}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
