"""Write the two files of the list task, `specs/data/lists_train.jsonl` and `lists_heldout.jsonl`.

    python benchmarks/make_lists.py [FOLDER]

A row gives a list of seven everyday words and asks for consecutive items, by the positions of the first and the last.
The same seed gives the same files, byte for byte: rows are drawn by Python's Mersenne Twister. No list and no answer
repeats in the two files together, so a held-out answer cannot be memorized.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SEED = 6
ROWS = {"lists_train": 240, "lists_heldout": 60}
ITEMS = 7
ANSWER_ITEMS = (2, 4)
"""Minimum and maximum number of items of an answer."""

WORD_LIST = """
apple arrow badge beach bell bird boat bone book box bread brick bridge broom bucket cake camel candle card carpet
chair cheese clock cloud coat coin cup desk dog door drum duck engine farm feather fence fire fish flag flower fork
fox frog garden gate glass glove goat gold grape hammer hat hill honey horse house island jacket jar key kite ladder
lake lamp leaf lemon letter lion map milk mirror moon mouse nail needle nest ocean onion orange owl paper pear pencil
piano plate pond queen rabbit radio rain ring river road rope rose sail salt seed sheep ship shoe silver sky snow soap
sofa spoon star stone sugar sun table tent tiger tower train tree violin wagon wall water wheel window wolf wool
"""
WORDS = WORD_LIST.split()


def draw_rows(count: int, seed: int = SEED) -> list[dict[str, str]]:
    """Return `count` different rows, in the order in which they are drawn."""
    random_generator = random.Random(seed)
    rows: list[dict[str, str]] = []
    answers: set[str] = set()
    while len(rows) < count:
        items = random_generator.sample(WORDS, ITEMS)
        length = random_generator.randint(*ANSWER_ITEMS)
        first = random_generator.randint(1, ITEMS - length + 1)
        answer = ", ".join(items[first - 1 : first - 1 + length])
        if answer in answers:
            continue
        answers.add(answer)
        instruction = f"Give items {first} to {first + length - 1} of this list."
        rows.append({"instruction": instruction, "input": ", ".join(items), "output": answer})
    return rows


def main() -> None:
    """Write the files into the folder of the command line, else into `specs/data`."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "specs" / "data"
    rows = draw_rows(sum(ROWS.values()))
    for name, count in ROWS.items():
        rows_of_file, rows = rows[:count], rows[count:]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of_file), encoding="utf-8")


if __name__ == "__main__":
    main()
