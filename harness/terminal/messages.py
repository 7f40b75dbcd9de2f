"""The words and tables for what happened in a run. Knows events; prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.spec import shares
from harness.types import Evaluation, Plan, Stage, Unit
from harness.utils.formatting import duration, number, one_line

NAMED = 4
"""Arms that a warning names; of more it says how many they are."""

Say = Callable[[str, str, Sequence[str]], None]
"""(the arms that it concerns, empty for all; the text; the rows that it is about)."""


class Notices:
    """Passes warnings on, each distinct text once.

    Those that are heard while the arms of an experiment are prepared wait for the end of that, since only then it is
    known whether all arms have them.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told: set[str] = set()
        self._waiting: dict[str, tuple[list[str], Sequence[str]]] = {}
        self._arms: list[str] = []

    def of_arm(self, name: str) -> None:
        """What is heard from here on, to the next `tell`, is of this arm."""
        self._arms.append(name)

    def hear(self, text: str, rows: Sequence[str] = ()) -> None:
        """A warning was raised."""
        if self._arms:
            arms, _ = self._waiting.setdefault(text, ([], rows))
            if self._arms[-1] not in arms:
                arms.append(self._arms[-1])
        elif text not in self._told:
            self._told.add(text)
            self._say("", text, rows)

    def tell(self) -> None:
        """Pass on what waits, in the order in which it was heard."""
        waiting, every = self._waiting, len(self._arms)
        self._waiting, self._arms = {}, []
        for text, (arms, rows) in waiting.items():
            if text not in self._told:
                self._told.add(text)
                self._say("" if len(arms) == every else _named(arms), text, rows)


def _named(arms: Sequence[str]) -> str:
    shown, more = arms[:NAMED], len(arms) - NAMED
    names = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"{'arm' if len(arms) == 1 else 'arms'} {names}"


UNITS: Mapping[Unit, str] = {"rows": "rows", "tokens": "tokens", "loss_tokens": "loss tokens"}
EPOCHS = 8
"""Epochs whose shares are told one by one."""

Shares = Mapping[str, Mapping[str, float]]
"""Source -> unit -> realised share."""


def start(data: Mapping[str, Any]) -> Text:
    """The line for `run_started`."""
    plan: Plan = data["plan"]
    stages = len(plan.stages)
    facts = f"{stages} {'stage' if stages == 1 else 'stages'}, {', '.join(plan.mitigations) or 'no mitigation'}"
    return Text.assemble((one_line(plan.name), "bold"), f": {facts} → ", (one_line(str(data["folder"])), "cyan"))


def data(facts: Mapping[str, Any], plan: Plan | None) -> Iterator[RenderableType]:
    """For `data`: a table of what each source gave, and the realised shares of each stage beside those asked for."""
    counts: Mapping[str, Mapping[str, int]] = facts["counts"]
    columns = list(dict.fromkeys(key for one in counts.values() for key, count in one.items() if count))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("source")
    for column in columns:
        table.add_column(Text(column.replace("_", " ")), justify="right")
    for source, one in counts.items():
        table.add_row(Text(one_line(source)), *(f"{one[key]:,}" if key in one else "" for key in columns))
    yield table
    stages: Sequence[Stage] = facts.get("stages", plan.stages if plan is not None else ())
    by_epoch = facts.get("epoch_shares", [()] * len(stages))
    for stage, whole, efficiency, epochs in zip(stages, facts["shares"], facts["efficiency"], by_epoch, strict=True):
        yield from _shares(stage, whole, efficiency, epochs)


def scores(stage: int, evaluations: Sequence[Evaluation]) -> Iterator[Text]:
    """One line a suite for `evaluated`."""
    for one in evaluations:
        found = "  ".join(f"{one_line(score.name)} {number(score.value)}" for score in one.scores)
        yield Text.assemble(
            ("base" if stage == 0 else f"stage {stage}", "dim"), f"  {one_line(one.suite)}  ", (found, "")
        )


def closed(facts: Mapping[str, Any]) -> Text:
    """The line for `run_closed`."""
    did = {
        "page": "its page is made",
        "disk": "the ends of its stages are gone",
        "tracking": "its tracking is complete",
    }
    told = ", ".join(did[one] for one in facts["lacked"])
    return Text(f"the run was finished but for its end: {told} now; {one_line(str(facts['folder']))}")


def gist(facts: Mapping[str, Any], plan: Plan | None) -> str:
    """What `data` shows, as one text: the same for two runs whose data a reader could not tell apart."""
    stages = facts.get("stages", plan.stages if plan is not None else ())
    laid = [(one.name, one.parts, one.shares) for one in stages]
    return repr((facts["counts"], facts["shares"], facts["efficiency"], facts.get("epoch_shares"), laid))


def arm_ready(facts: Mapping[str, Any]) -> Text:
    """The line for `arm_prepared`."""
    head = f"arm {facts['number']} of {facts['of']} prepared: "
    rest = f", {facts['used']:,} rows to train on, {facts['evaluated']:,} to evaluate, in {duration(facts['seconds'])}"
    return Text.assemble((head, "dim"), one_line(facts["arm"]), (rest, "dim"))


def arm_start(facts: Mapping[str, Any]) -> Text:
    """The line for `arm_started`."""
    return Text.assemble((f"arm {facts['number']} of {facts['of']}: ", "dim"), (one_line(facts["arm"]), "bold cyan"))


def variant(number_: int, facts: Mapping[str, Any]) -> Iterator[Text]:
    """One line a suite for `variant`."""
    for one in facts["evaluations"]:
        found = "  ".join(f"{one_line(score.name)} {number(score.value)}" for score in one.scores)
        name = f"{one_line(facts['mitigation'])} {one_line(facts['variant'])}"
        yield Text.assemble((f"stage {number_}, {name}", "dim"), f"  {one_line(one.suite)}  {found}")


def stage_start(number_: int, facts: Mapping[str, Any], plan: Plan | None) -> Text:
    """The line for `stage_started`."""
    of = f" of {len(plan.stages)}" if plan is not None else ""
    return Text.assemble(
        (f"stage {number_}{of}: {one_line(facts['stage'].name)}", "bold"), f", {facts['steps']:,} updates"
    )


def within(facts: Mapping[str, Any]) -> Text:
    """The line for `measured`."""
    found = "  ".join(f"{one_line(name)} {number(value)}" for name, value in facts["scores"].items())
    total = "" if facts["combined"] is None else f"  combined {number(facts['combined'])}"
    mark = "  best so far" if facts["best"] else ""
    end = "; no better any more, the stage ends" if facts["over"] else ""
    return Text.assemble((f"update {facts['step']:,}", "dim"), f"  {found}{total}{mark}{end}")


def stage_end(facts: Mapping[str, Any]) -> Text:
    """The line for `stage_finished`."""
    trained = facts["trained"]
    speed = f", {trained.tokens / trained.seconds:,.0f} tokens/s" if trained.seconds > 0 else ""
    return Text(
        f"{one_line(facts['stage'].name)}: {trained.steps:,} updates in {duration(trained.seconds)}, "
        f"loss {number(trained.loss)}, {trained.tokens:,} tokens{speed}"
    )


def _shares(stage: Stage, whole: Shares, efficiency: float, epochs: Sequence[Shares]) -> Iterator[Text]:
    # The shares that were asked for first: they are what a reader checks.
    said = [f"{_parts(share.sources, whole, share.unit)} (asked {100 * share.amount:g} %)" for share in stage.shares]
    named = {source for share in stage.shares for source in share.sources}
    said += [_parts([part.source], whole, "loss_tokens") for part in stage.parts if part.source not in named]
    name = one_line(stage.name)
    yield Text(f"{name}: {', '.join(said)}; {_percent(efficiency)} of the token slots hold text")
    for share in stage.shares if len(epochs) > 1 else ():
        found = [_percent(shares.realised(share, epoch)) for epoch in epochs]
        told = f"{', '.join(found[:EPOCHS])} of {UNITS[share.unit]}"
        if len(set(found)) == 1:
            told = f"{found[0]} of {UNITS[share.unit]} in each of {len(found)} epochs"
        elif len(found) > EPOCHS:
            told += f", and {len(found) - EPOCHS} epochs more"
        yield Text(f"{name} by epoch: {' + '.join(map(one_line, share.sources))} {told}")


def _parts(sources: Sequence[str], whole: Shares, unit: Unit) -> str:
    found = [(one_line(source), whole.get(source, {}).get(unit, 0.0)) for source in sources]
    said = " + ".join(f"{name} {_percent(part)}" if part else f"{name} without any row" for name, part in found)
    return f"{said} of {UNITS[unit]}" if any(part for _, part in found) else said


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
