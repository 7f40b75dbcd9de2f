"""Writes the two files of the list task, `specs/data/lists_train.jsonl` and `lists_heldout.jsonl`.

    python benchmarks/make_lists.py [FOLDER]

A row gives a list of seven everyday words and asks for a stretch of it, by the places of its first and last item. The
same seed gives the same files, byte for byte: rows are drawn by Python's Mersenne Twister, and no list and no answer
stands twice in the two files together, so that a held-out answer can only be worked out.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SEED = 6
ROWS = {"lists_train": 240, "lists_heldout": 60}
ITEMS = 7
STRETCH = (2, 4)
"""Items of an answer, at least and at most."""

EVERYDAY = """
apple arrow badge beach bell bird boat bone book box bread brick bridge broom bucket cake camel candle card carpet
chair cheese clock cloud coat coin cup desk dog door drum duck engine farm feather fence fire fish flag flower fork
fox frog garden gate glass glove goat gold grape hammer hat hill honey horse house island jacket jar key kite ladder
lake lamp leaf lemon letter lion map milk mirror moon mouse nail needle nest ocean onion orange owl paper pear pencil
piano plate pond queen rabbit radio rain ring river road rope rose sail salt seed sheep ship shoe silver sky snow soap
sofa spoon star stone sugar sun table tent tiger tower train tree violin wagon wall water wheel window wolf wool
"""
WORDS = EVERYDAY.split()


def rows(count: int, seed: int = SEED) -> list[dict[str, str]]:
    """`count` different rows, in the order in which they are drawn."""
    draw = random.Random(seed)
    made: list[dict[str, str]] = []
    answers: set[str] = set()
    while len(made) < count:
        items = draw.sample(WORDS, ITEMS)
        length = draw.randint(*STRETCH)
        first = draw.randint(1, ITEMS - length + 1)
        answer = ", ".join(items[first - 1 : first - 1 + length])
        if answer in answers:
            continue
        answers.add(answer)
        asked = f"Give items {first} to {first + length - 1} of this list."
        made.append({"instruction": asked, "input": ", ".join(items), "output": answer})
    return made


def main() -> None:
    """Write the files into the folder named, else into `specs/data`."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "specs" / "data"
    made = rows(sum(ROWS.values()))
    for name, count in ROWS.items():
        some, made = made[:count], made[count:]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")


if __name__ == "__main__":
    main()
