"""Run the data checks of plugins, and compare their findings with the spec's limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.errors import HarnessError, located_errors
from harness.interfaces.check import Check
from harness.types import Example, Finding, Progress, no_progress
from harness.utils.formatting import one_line, round_up_share

MAX_STORED = 100
"""Findings of one check in one source or suite that are stored."""

MAX_ROWS_SHOWN = 3
"""Rows that a message names."""


@dataclass(frozen=True)
class RowCheckResult:
    """What a check found in the rows of one source or suite.

    Attributes:
        check: Name of the check.
        place: `sources.<name>` or `evaluate.<suite>`.
        rows: The number of rows.
        rows_found: Rows with a finding.
        findings: The first findings.
        allowed: The largest allowed share of rows with a finding; None: any.
    """

    check: str
    place: str
    rows: int
    rows_found: int
    findings: tuple[Finding, ...]
    allowed: float | None

    @property
    def share(self) -> float:
        """Rows with a finding / rows, in [0, 1]."""
        return self.rows_found / self.rows if self.rows else 0.0

    @property
    def exceeds_limit(self) -> bool:
        """Whether more rows have a finding than the spec allows."""
        return self.allowed is not None and self.share > self.allowed

    def message(self) -> str | HarnessError | None:
        """Return the error above the limit, the warning below it, or None if nothing was found."""
        if not self.rows_found:
            return None
        examples = self._shown_rows()
        more_rows = self.rows_found - len(examples)
        more = [f"and {more_rows:,} more row{'s' * (more_rows != 1)}"] if more_rows else []
        what = f"the check {self.check!r} has findings in {self.rows_found:,} of its {self.rows:,} rows"
        if not self.exceeds_limit:
            return "\n".join([f"{self.place}: {what}", *examples, *more])
        hint = (
            f"fix these rows, or raise checks.{self.check}.allowed ({self.allowed:g}) to {round_up_share(self.share)}"
        )
        return HarnessError(self.place, f"{what}: {', '.join([*examples, *more])}", hint)

    def _shown_rows(self) -> list[str]:
        """Return one line for each of the first rows, with everything that was found in it."""
        texts: dict[str, list[str]] = {}
        for finding in self.findings:
            texts.setdefault(finding.location, []).append(finding.text)
        first = list(texts.items())[:MAX_ROWS_SHOWN]
        return [one_line(f"{location}: {'; '.join(found)}") for location, found in first]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "rows": self.rows,
            "rows_found": self.rows_found,
            "findings": [asdict(finding) for finding in self.findings],
        }


def unavailable_check_errors(checks: Mapping[str, tuple[Check, float | None]]) -> Iterator[HarnessError]:
    """Yield an error for each check that needs something that is not installed."""
    return located_errors((f"checks.{name}", check.check_available) for name, (check, _) in checks.items())


def run_plugin_checks(
    checks: Mapping[str, tuple[Check, float | None]],
    training: Mapping[str, Sequence[Example]],
    suites: Mapping[str, Sequence[Example]],
    progress: Progress = no_progress,
) -> tuple[RowCheckResult, ...]:
    """Run each check on the rows of each source and suite.

    Args:
        checks: Name -> the check, and the largest allowed share of rows with a finding (None: any).
        training: Source -> its rows that may be trained on.
        suites: Suite -> the rows that it evaluates.
        progress: Receives the phase of each check, in rows.
    """
    return tuple(
        _run_check(name, check, allowed, rows, place_name, is_training, progress)
        for name, (check, allowed) in checks.items()
        for is_training, places in ((True, training), (False, suites))
        for place_name, rows in places.items()
    )


def _run_check(
    name: str,
    check: Check,
    allowed: float | None,
    rows: Sequence[Example],
    place_name: str,
    is_training: bool,
    progress: Progress,
) -> RowCheckResult:
    place = f"{'sources' if is_training else 'evaluate'}.{place_name}"
    findings: list[Finding] = []
    locations: set[str] = set()
    for finding in check.find_issues(
        _iter_with_progress(rows, f"check {name}", place_name, progress), name=place_name, is_training=is_training
    ):
        locations.add(finding.location)
        if len(findings) < MAX_STORED:
            findings.append(finding)
    return RowCheckResult(name, place, len(rows), len(locations), tuple(findings), allowed)


def _iter_with_progress(rows: Sequence[Example], phase: str, note: str, progress: Progress) -> Iterator[Example]:
    for index, example in enumerate(rows):
        if index % 1000 == 0:
            progress(phase, index, len(rows), note, "rows")
        yield example
