"""Proves a row's mask: that the response and its end of turn are trained, and nothing else.

The proof does not look at the spans that the mask came from. It decodes the tokens that are trained, and compares what
stands before them with the prompt that generation would use.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from harness.contracts import Example, Row, Template
from harness.data.encode import Encoded, encode, name_of, prompt_tokens
from harness.data.markers import tokenise
from harness.data.rendering import Rendering
from harness.errors import HarnessError

HINT = "look at the row with `harness preview`, and mend the template or choose another"


def prove(example: Example, encoded: Encoded, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise HarnessError, with the row's place, unless the row trains each response and its end of turn, and no header.

    Of a template that has `train_on = "last"` only the last response counts. A truncated row must be the beginning of
    the whole row, which is proven in its stead. White space is not compared: some tokenizers do not keep it.
    """
    row = encoded.row
    if len(row.labels) != len(row.input_ids):
        raise _unproven(example, template, f"there are {len(row.labels)} labels for {len(row.input_ids)} tokens")
    if any(label not in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True)):
        raise _unproven(example, template, "a label is another token than the one that it stands at")
    if encoded.cut:
        length = len(row.input_ids)
        whole = encode(example, row.source, template, tokenizer, length + encoded.cut)
        if (whole.input_ids[:length], whole.labels[:length]) != (row.input_ids, row.labels):
            raise _unproven(example, template, "the truncated row is not the beginning of the whole one")
        row = whole
    runs = trained_runs(row)
    answers = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    if getattr(template, "train_on", "all") == "last":
        answers = answers[-1:]
    if len(runs) != len(answers):
        what = f"there are {len(answers)} responses to train and {len(runs)} trained stretches"
        raise _unproven(example, template, what)
    for (begin, end), index in zip(runs, answers, strict=True):
        _prove_header(example, row, begin, index, template, tokenizer)
        _prove_response(example, row, begin, end, index, template, tokenizer)


def trained_runs(row: Row) -> list[tuple[int, int]]:
    """The stretches of trained tokens, (begin, end), in order."""
    runs: list[tuple[int, int]] = []
    for place, label in enumerate(row.labels):
        if label == -100:
            continue
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _prove_header(
    example: Example, row: Row, begin: int, index: int, template: Template, tokenizer: PreTrainedTokenizerBase
) -> None:
    start, ids = prompt_tokens(example, example.messages[:index], template, tokenizer)
    prompt = [*start, *ids]
    same = next((i for i, (a, b) in enumerate(zip(prompt, row.input_ids, strict=False)) if a != b), len(prompt))
    inside = begin < same
    if same < len(prompt):
        # A token may take in the prompt's last character and the response's first; it stands before `begin` then.
        inside = inside or not _text(row.input_ids[:begin], tokenizer).startswith(_text(prompt, tokenizer))
    if inside:
        raise _unproven(example, template, f"a token of what precedes response {index + 1} is trained")


def _prove_response(
    example: Example, row: Row, begin: int, end: int, index: int, template: Template, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = row.input_ids[begin:end]
    trained = _text(ids, tokenizer)
    content = Rendering(example.messages[index].content, (), (), ())
    ((content_ids, _),) = tokenise([content], tokenizer, [example.place])
    expected = _text(content_ids, tokenizer)
    place = trained.find(expected)
    if place < 0:
        raise _unproven(example, template, f"the trained tokens do not hold the text of response {index + 1}")
    rest = trained[place + len(expected) :]
    stops = template.stops(tokenizer)
    known = tokenizer.added_tokens_encoder
    ended = False
    while stop := next((stop for stop in stops if _squashed(stop) and rest.startswith(_squashed(stop))), None):
        rest = rest[len(_squashed(stop)) :]
        ended = ended or stop not in known or known[stop] in ids
    if not ended:
        raise _unproven(example, template, f"the end of turn after response {index + 1} is not trained")
    if rest:
        raise _unproven(example, template, f"text after the end of response {index + 1} is trained: {rest[:40]!r}")


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return _squashed(str(text))


def _squashed(text: str) -> str:
    return "".join(text.split())


def _unproven(example: Example, template: Template, what: str) -> HarnessError:
    return HarnessError(example.place, f"the mask of the template {name_of(template)} is wrong: {what}", HINT)
