"""The words and tables for what happened in a run. Knows events; prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.spec import shares
from harness.types import Evaluation, Plan, ShareUnit, Stage
from harness.utils.formatting import format_duration, format_number, one_line

MAX_NAMED_ARMS = 4
"""Arms that a warning names; of more it says how many they are."""

EmitWarning = Callable[[str, str, Sequence[str]], None]
"""(the arms that it concerns, empty for all; the text; the rows that it is about)."""


class WarningBuffer:
    """Passes warnings on, each distinct text once.

    Those that are heard while the arms of an experiment are prepared wait for the end of that, since only then it is
    known whether all arms have them.
    """

    def __init__(self, emit: EmitWarning) -> None:
        self._say = emit
        self._told: set[str] = set()
        self._waiting: dict[str, tuple[list[str], Sequence[str]]] = {}
        self._arms: list[str] = []

    def set_arm(self, name: str) -> None:
        """What is heard from here on, to the next `flush`, is of this arm."""
        self._arms.append(name)

    def add(self, text: str, rows: Sequence[str] = ()) -> None:
        """A warning was raised."""
        if self._arms:
            arms, _ = self._waiting.setdefault(text, ([], rows))
            if self._arms[-1] not in arms:
                arms.append(self._arms[-1])
        elif text not in self._told:
            self._told.add(text)
            self._say("", text, rows)

    def flush(self) -> None:
        """Pass on what waits, in the order in which it was heard."""
        waiting, every = self._waiting, len(self._arms)
        self._waiting, self._arms = {}, []
        for text, (arms, rows) in waiting.items():
            if text not in self._told:
                self._told.add(text)
                self._say("" if len(arms) == every else _format_arms(arms), text, rows)


def _format_arms(arms: Sequence[str]) -> str:
    shown, more = arms[:MAX_NAMED_ARMS], len(arms) - MAX_NAMED_ARMS
    names = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"{'arm' if len(arms) == 1 else 'arms'} {names}"


UNIT_NAMES: Mapping[ShareUnit, str] = {"rows": "rows", "tokens": "tokens", "loss_tokens": "loss tokens"}
MAX_LISTED_EPOCHS = 8
"""Epochs whose shares are told one by one."""

SharesBySource = Mapping[str, Mapping[str, float]]
"""Source -> unit -> realised share."""


def format_run_start(payload: Mapping[str, Any]) -> Text:
    """The line for `run_started`."""
    plan: Plan = payload["plan"]
    stages = len(plan.stages)
    facts = f"{stages} {'stage' if stages == 1 else 'stages'}, {', '.join(plan.mitigations) or 'no mitigation'}"
    return Text.assemble((one_line(plan.name), "bold"), f": {facts} → ", (one_line(str(payload["folder"])), "cyan"))


def format_data(payload: Mapping[str, Any], plan: Plan | None) -> Iterator[RenderableType]:
    """For `data`: a table of what each source gave, and the realised shares of each stage beside those asked for."""
    counts: Mapping[str, Mapping[str, int]] = payload["counts"]
    columns = list(dict.fromkeys(key for one in counts.values() for key, count in one.items() if count))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("source")
    for column in columns:
        table.add_column(Text(column.replace("_", " ")), justify="right")
    for source, one in counts.items():
        table.add_row(Text(one_line(source)), *(f"{one[key]:,}" if key in one else "" for key in columns))
    yield table
    stages: Sequence[Stage] = payload.get("stages", plan.stages if plan is not None else ())
    by_epoch = payload.get("epoch_shares", [()] * len(stages))
    for stage, whole, efficiency, epochs in zip(
        stages, payload["shares"], payload["efficiency"], by_epoch, strict=True
    ):
        yield from _format_shares(stage, whole, efficiency, epochs)


def format_scores(stage: int, evaluations: Sequence[Evaluation]) -> Iterator[Text]:
    """One line a suite for `evaluated`."""
    for one in evaluations:
        found = "  ".join(f"{one_line(score.name)} {format_number(score.value)}" for score in one.scores)
        yield Text.assemble(
            ("base" if stage == 0 else f"stage {stage}", "dim"), f"  {one_line(one.suite)}  ", (found, "")
        )


def format_run_completed(payload: Mapping[str, Any]) -> Text:
    """The line for `run_closed`."""
    did = {
        "page": "its page is made",
        "disk": "the ends of its stages are gone",
        "tracking": "its tracking is complete",
    }
    told = ", ".join(did[one] for one in payload["lacked"])
    return Text(f"the run was finished but for its end: {told} now; {one_line(str(payload['folder']))}")


def data_summary_key(payload: Mapping[str, Any], plan: Plan | None) -> str:
    """What `data` shows, as one text: the same for two runs whose data a reader could not tell apart."""
    stages = payload.get("stages", plan.stages if plan is not None else ())
    laid = [(one.name, one.sources, one.shares) for one in stages]
    return repr((payload["counts"], payload["shares"], payload["efficiency"], payload.get("epoch_shares"), laid))


def format_arm_prepared(payload: Mapping[str, Any]) -> Text:
    """The line for `arm_prepared`."""
    head = f"arm {payload['number']} of {payload['of']} prepared: "
    rest = f", {payload['used']:,} rows to train on, {payload['evaluated']:,} to evaluate, in {format_duration(payload['seconds'])}"
    return Text.assemble((head, "dim"), one_line(payload["arm"]), (rest, "dim"))


def format_arm_start(payload: Mapping[str, Any]) -> Text:
    """The line for `arm_started`."""
    return Text.assemble(
        (f"arm {payload['number']} of {payload['of']}: ", "dim"), (one_line(payload["arm"]), "bold cyan")
    )


def format_variant(stage_number: int, payload: Mapping[str, Any]) -> Iterator[Text]:
    """One line a suite for `variant`."""
    for one in payload["evaluations"]:
        found = "  ".join(f"{one_line(score.name)} {format_number(score.value)}" for score in one.scores)
        name = f"{one_line(payload['mitigation'])} {one_line(payload['variant'])}"
        yield Text.assemble((f"stage {stage_number}, {name}", "dim"), f"  {one_line(one.suite)}  {found}")


def format_stage_start(stage_number: int, payload: Mapping[str, Any], plan: Plan | None) -> Text:
    """The line for `stage_started`."""
    of = f" of {len(plan.stages)}" if plan is not None else ""
    return Text.assemble(
        (f"stage {stage_number}{of}: {one_line(payload['stage'].name)}", "bold"), f", {payload['steps']:,} updates"
    )


def format_mid_stage_scores(payload: Mapping[str, Any]) -> Text:
    """The line for `measured`."""
    found = "  ".join(f"{one_line(name)} {format_number(value)}" for name, value in payload["scores"].items())
    total = "" if payload["combined"] is None else f"  combined {format_number(payload['combined'])}"
    mark = "  best so far" if payload["best"] else ""
    end = "; no better any more, the stage ends" if payload["over"] else ""
    return Text.assemble((f"update {payload['step']:,}", "dim"), f"  {found}{total}{mark}{end}")


def format_stage_end(payload: Mapping[str, Any]) -> Text:
    """The line for `stage_finished`."""
    trained = payload["trained"]
    speed = f", {trained.tokens / trained.seconds:,.0f} tokens/s" if trained.seconds > 0 else ""
    return Text(
        f"{one_line(payload['stage'].name)}: {trained.steps:,} updates in {format_duration(trained.seconds)}, "
        f"loss {format_number(trained.loss)}, {trained.tokens:,} tokens{speed}"
    )


def _format_shares(
    stage: Stage, stage_shares: SharesBySource, efficiency: float, epoch_shares: Sequence[SharesBySource]
) -> Iterator[Text]:
    # The shares that were asked for first: they are what a reader checks.
    said = [
        f"{_format_sources(share.sources, stage_shares, share.unit)} (asked {100 * share.amount:g} %)"
        for share in stage.shares
    ]
    named = {source for share in stage.shares for source in share.sources}
    said += [
        _format_sources([part.source], stage_shares, "loss_tokens")
        for part in stage.sources
        if part.source not in named
    ]
    name = one_line(stage.name)
    yield Text(f"{name}: {', '.join(said)}; {_format_percent(efficiency)} of the token slots hold text")
    for share in stage.shares if len(epoch_shares) > 1 else ():
        found = [_format_percent(shares.realized_share(share, epoch)) for epoch in epoch_shares]
        told = f"{', '.join(found[:MAX_LISTED_EPOCHS])} of {UNIT_NAMES[share.unit]}"
        if len(set(found)) == 1:
            told = f"{found[0]} of {UNIT_NAMES[share.unit]} in each of {len(found)} epochs"
        elif len(found) > MAX_LISTED_EPOCHS:
            told += f", and {len(found) - MAX_LISTED_EPOCHS} epochs more"
        yield Text(f"{name} by epoch: {' + '.join(map(one_line, share.sources))} {told}")


def _format_sources(sources: Sequence[str], stage_shares: SharesBySource, unit: ShareUnit) -> str:
    found = [(one_line(source), stage_shares.get(source, {}).get(unit, 0.0)) for source in sources]
    said = " + ".join(f"{name} {_format_percent(part)}" if part else f"{name} without any row" for name, part in found)
    return f"{said} of {UNIT_NAMES[unit]}" if any(part for _, part in found) else said


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"
