"""A step of generation waits for the device a known number of times."""

from __future__ import annotations

from collections import Counter

import pytest
from support.wait_counter import WaitCounter

from harness.evaluation.generation import Decoding, StopConditions, generate_answers

NO_STOP = StopConditions(eos_id=None, token_ids=frozenset(), strings=())


@pytest.fixture
def waits_of_a_token(tiny_model, tokenizer, monkeypatch):
    """(lengths of the prompts) -> how often the fourth token waits, by kind."""

    def measure(*lengths):
        prompts = {key: list(range(10, 10 + length)) for key, length in enumerate(lengths)}
        counts = []
        for tokens in (3, 4):
            decoding = Decoding(tokens, batch_size=len(prompts))
            with monkeypatch.context() as patch, WaitCounter(patch) as counter:
                generate_answers(
                    tiny_model.eval(), tokenizer, prompts, stops=NO_STOP, decoding=decoding, on_answer=lambda *_: None
                )
            counts.append(Counter(counter.counts))
        return dict(counts[1] - counts[0])

    return measure


@pytest.mark.parametrize("lengths", [(5,), (5, 5), (3, 9, 4)])
def test_a_token_waits_for_itself_only(lengths, waits_of_a_token):
    waits = waits_of_a_token(*lengths)
    assert waits.pop("tolist") == 1
    assert waits == {"scalar": 1}  # transformers looks for padding
