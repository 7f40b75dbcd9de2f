"""Which mitigation writes the rows of a stage's source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, StageSource


def find_writer(part: StageSource, mitigations: Mapping[str, Any]) -> str:
    """Return the name in the spec of the mitigation that writes the rows of a source.

    Args:
        part: A source with `written_by`, which may be the short name of `distribution/name`.
        mitigations: The mitigations of the stage, by their names in the spec.

    Raises:
        KeyError: None of them has the name.
    """
    for name in mitigations:
        if part.written_by in (name, name.rpartition("/")[2]):
            return name
    raise KeyError(part.written_by)


def invalid_writer_errors(where: str, stage: Stage, mitigations: Mapping[str, Mitigation]) -> Iterator[HarnessError]:
    """Yield an error for each source of a stage whose writer is not a mitigation that writes rows.

    Args:
        where: The location of the stage in the spec.
        stage: The stage.
        mitigations: Its mitigations, by name.
    """
    for part in stage.sources:
        if part.written_by is None:
            continue
        try:
            writer = mitigations[find_writer(part, mitigations)]
        except KeyError:
            what = f"the rows of {part.source!r} are written by {part.written_by!r}, which is not in the stage"
            yield HarnessError(where, what, "name a mitigation of the stage in StageSource.written_by")
            continue
        if type(writer).generate_rows is Mitigation.generate_rows:
            what = f"the rows of {part.source!r} are written by {part.written_by!r}, which does not write rows"
            yield HarnessError(where, what, f"define {type(writer).__name__}.generate_rows")
