"""Which rows of a source are used, which are held out, and the proof that no suite's row is trained on.

Every choice is by the hash of a row's content and the plan's seed: it does not change with the order of the file,
and a row that is added moves no other row to the other side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.contracts import Example
from harness.data.conversation import prompt_id
from harness.errors import HarnessError, raise_all
from harness.seeds import derive

SHOWN = 3


@dataclass(frozen=True)
class Split:
    """The rows of a source, told apart. training and held_out hold none of the duplicates and rows beyond the limit.

    read = duplicates + beyond_limit + len(training) + len(held_out).
    """

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    read: int
    duplicates: int
    beyond_limit: int


def split(examples: Sequence[Example], *, held_out: float, limit: int | None, seed: int) -> Split:
    """A source's rows, each content once, `limit` of them, with a share of their prompts held out.

    held_out: in [0, 1): a prompt is held out when its seeded hash falls below it, so that all rows with the same
    prompt stand on one side, whichever source they are in. The realised share differs from it by chance.
    limit: how many of the distinct rows are used; the choice is made before they are held out.
    """
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.id, example)
    distinct = list(first.values())
    kept = chosen(distinct, limit, seed, "limit")
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in kept:
        sides[is_held_out(example, held_out, seed)].append(example)
    return Split(
        training=tuple(sides[0]),
        held_out=tuple(sides[1]),
        read=len(examples),
        duplicates=len(examples) - len(distinct),
        beyond_limit=len(distinct) - len(kept),
    )


def is_held_out(example: Example, share: float, seed: int) -> bool:
    """Whether the seeded hash of the example's prompt falls below `share`."""
    return share > 0 and derive(seed, "held_out", prompt_id(example)) < share * 2**32


def chosen(examples: Sequence[Example], limit: int | None, seed: int, purpose: str) -> list[Example]:
    """At most `limit` of the examples, in their order: those whose seeded hashes are lowest. None: all of them."""
    if limit is None or limit >= len(examples):
        return list(examples)
    ids = set(ranked([example.id for example in examples], seed, purpose)[:limit])
    return [example for example in examples if example.id in ids]


def ranked(ids: Sequence[str], seed: int, *purpose: str | int) -> list[str]:
    """The ids in an order that is random by seed and purpose, and does not depend on the order given."""
    return sorted(ids, key=lambda identity: (derive(seed, *purpose, identity), identity))


def check_disjoint(trained: Mapping[str, Sequence[Example]], suites: Mapping[str, Sequence[Example]]) -> None:
    """Prove that no prompt of a suite is trained on.

    trained: source -> rows that may be trained on. suites: suite -> rows that it may evaluate.
    Raises HarnessError that names up to three pairs of rows for each suite and source that share a prompt.
    """
    prompts = {source: {prompt_id(row): row for row in reversed(rows)} for source, rows in trained.items()}
    raise_all(error for name, rows in suites.items() for error in _shared(name, rows, prompts))


def _shared(
    suite: str, rows: Sequence[Example], prompts: Mapping[str, Mapping[str, Example]]
) -> Iterator[HarnessError]:
    for source, by_prompt in prompts.items():
        pairs = [(row, by_prompt[key]) for row in rows if (key := prompt_id(row)) in by_prompt]
        if pairs:
            named = ", ".join(f"{row.place} = {other.place}" for row, other in pairs[:SHOWN])
            more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
            what = f"{len(pairs)} of its rows ask what the training source {source!r} also asks: {named}{more}"
            hint = "take them out of one side, or hold rows out with the source's option 'held_out'"
            yield HarnessError(f"evaluate.{suite}", what, hint)
