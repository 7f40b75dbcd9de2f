"""Check what the split of the sources leaves: rows on both sides, and groups that no other source trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from harness.data.reading.corpus import Corpus
from harness.data.reading.held_out_rule import HeldOutRule
from harness.data.reading.splits import Split
from harness.errors import HarnessError
from harness.types import Example, Suite
from harness.utils.formatting import round_up_share


def no_training_rows_errors(
    names: Sequence[str], splits: Mapping[str, Split], rules: Mapping[str, HeldOutRule]
) -> Iterator[HarnessError]:
    """Yield an error for each of these sources that has no row left to train on; the others map a source."""
    for name in names:
        if len(splits[name].training_indices):
            continue
        where, rule = f"sources.{name}.held_out", rules[name]
        what = f"all {len(splits[name].held_out_indices)} of its rows are held out, so none is left to train on"
        if rule.start is not None:
            hint = f"set a later {where}.from"
        elif rule.read_column is not None or rule.near_duplicates:
            groups = splits[name].held_out_groups
            what += f": they are {groups} group{'' if groups == 1 else 's'} by {rule.describe()}"
            hint = f"lower {where}.share, {_other_groups_hint(rule)}"
        else:
            hint = f"lower {where}"
        yield HarnessError(f"sources.{name}", what, f"{hint}, or add rows")


def no_suite_rows_errors(
    suites: Sequence[Suite],
    suite_rows: Mapping[str, Sequence[Example]],
    splits: Mapping[str, Split],
    rules: Mapping[str, HeldOutRule],
) -> Iterator[HarnessError]:
    """Yield an error for each suite without rows: `suite_rows` maps a suite to its rows, the others map a source."""
    for suite in suites:
        if len(suite_rows[suite.name]):
            continue
        split, rule = splits[suite.source], rules[suite.source]
        where = f"sources.{suite.source}.held_out"
        if rule.start is not None:
            what = f"no row of {suite.source!r} has a {rule.column!r} of {rule.start_text!r} or later"
            yield HarnessError(where, what, f"set an earlier {where}.from, or add rows")
        elif split.smallest_group is not None:
            rows = len(split.training_indices)
            what = (
                f"no group is held out: the smallest of {split.training_groups} by {rule.describe()} has "
                f"{split.smallest_group} of {rows} rows, and the share {rule.share:g} is "
                f"{round(rule.share * rows)} rows"
            )
            what += "" if rule.group is None else "; groups with an equal prompt are one group"
            needed = split.smallest_group / rows
            hint = f"raise {where}.share to {round_up_share(needed)}, or " if needed <= 0.9 else ""
            hint += _other_groups_hint(rule)
            yield HarnessError(where, what, hint)
        else:
            what = f"its source {suite.source!r} has too few rows to hold one out"
            yield HarnessError(f"evaluate.{suite.name}", what, "raise held_out, add rows, or name another source")


def _other_groups_hint(rule: HeldOutRule) -> str:
    return "raise checks.near_duplicates.threshold" if rule.group is None else "group by another column"


def divided_group_warnings(
    corpora: Mapping[str, Corpus],
    splits: Mapping[str, Split],
    rules: Mapping[str, HeldOutRule],
    trained: Sequence[str],
) -> Iterator[str]:
    """Yield a warning for each two sources of which one is trained on groups that the other holds out.

    Args:
        corpora: Source -> its rows.
        splits: Source -> its split.
        rules: Source -> how it is split.
        trained: The sources that may be trained on.
    """
    keys = {name: corpus.split_keys for name, corpus in corpora.items() if rules[name].group is not None}
    for name, held_out_keys in keys.items():
        for other, training_keys in keys.items():
            if name == other or other not in trained or rules[name].group != rules[other].group:
                continue
            assert held_out_keys is not None
            assert training_keys is not None
            shared = len(
                np.intersect1d(
                    held_out_keys[splits[name].held_out_indices], training_keys[splits[other].training_indices]
                )
            )
            if shared:
                yield (
                    f"{shared} {rules[name].group} held out of {name!r} are trained in {other!r}: groups are held out "
                    "within one source; put both files into the path of one"
                )
