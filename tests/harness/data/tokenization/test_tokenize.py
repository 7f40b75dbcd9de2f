"""Rows: exact labels, one beginning of sequence, prompts that are what training sees."""

from __future__ import annotations

import importlib

import pytest
from harness_templates import harness_templates
from tokenizers.processors import TemplateProcessing

from harness import Example, HarnessError, Message, Span, Template
from harness.data.tokenization.fingerprints import CANONICAL_CONVERSATIONS, template_fingerprint
from harness.data.tokenization.label_mask import EncodedExample
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import encode_example, encode_examples

NAMES = ["alpaca", "chatml", "instruction_zh", "llama2", "tokenizer"]
"""Templates that ask nothing of a tokenizer that the test's does not have."""
HEADED = "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}<|im_end|>{% endfor %}"
HEADED += "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"


def make(name, **options):
    component = harness_templates()[name]
    module, _, attribute = component.factory.partition(":")
    defaults = {key: schema["default"] for key, schema in component.options.items()}
    return getattr(importlib.import_module(module), attribute)(**{**defaults, **options})


def example(*contents, place="rows.jsonl:7", system=None):
    messages = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Example("id", tuple([Message("system", system)] * (system is not None) + messages), place)


ROWS = {
    "single": example("Name a river.", "The Elbe."),
    "multi": example("Name a river.", "The Elbe.", "Another.", "The Oder, too."),
    "system": example("Name a river.", "The Elbe.", system="Be brief."),
    "chinese": example("说一条河。", "长江是一条河。", "还有呢？", "黄河。"),
    "emoji": example("👍🏽?", "👩‍👩‍👧 🙂é"),
    "input": Example("id", (Message("user", "Sum up.", input="A\nB"), Message("assistant", "AB")), "rows.jsonl:7"),
}


@pytest.fixture
def beginning(tokenizer):
    """The tokenizer, made to put its begin-of-sequence token first by itself."""
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
    )
    processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", own.bos_token_id)])
    own.backend_tokenizer.post_processor = processor
    assert own("a").input_ids[0] == own.bos_token_id
    return own


class Spans(Template):
    """A template that renders what it is told."""

    name = "told"

    def __init__(self, closed, opened=()):
        self.closed, self.opened = closed, opened

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return self.opened if add_generation_prompt else self.closed

    def stop_strings(self, tokenizer):
        return ("</s>",)


@pytest.mark.parametrize("row", sorted(ROWS))
@pytest.mark.parametrize("name", NAMES)
def test_trained_tokens_are_the_responses_and_their_ends_of_turn(name, row, tokenizer):
    template = make(name)
    found = encode_example(ROWS[row], "s", template, tokenizer, 4096)
    assert all(label in (-100, token) for token, label in zip(found.input_ids, found.labels, strict=True))
    end = template.stop_strings(tokenizer)[0]
    pad = " " if name == "llama2" else ""
    expected = "".join(f"{pad}{m.content}{pad}{end}" for m in ROWS[row].messages if m.role == "assistant")
    trained = [label for label in found.labels if label != -100]
    assert tokenizer.decode(trained, clean_up_tokenization_spaces=False) == expected


@pytest.mark.parametrize("row", sorted(ROWS))
@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_what_training_sees_before_the_last_response(name, row, tokenizer):
    template = make(name)
    found = encode_example(ROWS[row], "s", template, tokenizer, 4096)
    prompt = encode_prompt(ROWS[row], template, tokenizer, 4096)
    assert prompt == list(found.input_ids[: len(prompt)])
    last = max(i for i, label in enumerate(found.labels) if label == -100 and i < len(prompt))
    assert last == len(prompt) - 1
    assert found.labels[len(prompt)] != -100


def test_a_prompt_that_ends_in_white_space_is_read_as_in_training():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # "\n\n" is one token at the end of a text and two before a word, as in GPT-2 and its kin.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|im_start|>", "<|im_end|>", *alphabet, "ĊĊ"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>"
    )
    template, line = make("jinja", template=HEADED), vocabulary["Ċ"]
    row = encode_example(ROWS["single"], "s", template, tokenizer, 4096)
    prompt = encode_prompt(ROWS["single"], template, tokenizer, 4096)
    assert tokenizer("\n\n", add_special_tokens=False).input_ids == [vocabulary["ĊĊ"]]
    assert prompt[-2:] == [line, line]
    assert prompt == list(row.input_ids[: len(prompt)])


@pytest.mark.parametrize("name", NAMES)
def test_one_beginning_of_sequence_where_the_tokenizer_puts_one(name, beginning):
    found = encode_example(ROWS["single"], "s", make(name), beginning, 4096)
    assert found.input_ids[0] == beginning.bos_token_id
    assert found.input_ids.count(beginning.bos_token_id) == 1
    assert found.labels[0] == -100
    prompt = encode_prompt(ROWS["single"], make(name), beginning, 4096)
    assert prompt == list(found.input_ids[: len(prompt)])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"llama2"}))
def test_no_beginning_of_sequence_where_neither_tokenizer_nor_template_puts_one(name, tokenizer):
    assert tokenizer.bos_token_id not in encode_example(ROWS["single"], "s", make(name), tokenizer, 4096).input_ids


def test_a_users_beginning_of_sequence_does_not_stand_for_the_real_one(beginning):
    template = Spans([Span("<s>hi"), Span("a", train=True), Span("</s>", train=True, markup=True)])
    ids = encode_example(ROWS["single"], "s", template, beginning, 4096).input_ids
    assert ids[0] == beginning.bos_token_id
    assert ids.count(beginning.bos_token_id) == 1


def test_a_token_that_begins_in_a_header_is_not_trained():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([":", "a", "b", ":a", "</s>"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "a")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    template = Spans([Span("b:", markup=True), Span("ab", train=True), Span("</s>", train=True, markup=True)])
    row = encode_example(ROWS["single"], "s", template, tokenizer, 4096)
    assert [tokenizer.convert_ids_to_tokens(token) for token in row.input_ids] == ["b", ":a", "b", "</s>"]
    assert row.labels == (-100, -100, vocabulary["b"], vocabulary["</s>"])


def test_truncation_cuts_at_the_right_and_says_how_much(tokenizer):
    whole = encode_example(ROWS["single"], "s", make("chatml"), tokenizer, 4096)
    length = len(whole.input_ids)
    (cut,) = encode_examples([ROWS["single"]], "s", make("chatml"), tokenizer, length - 4)
    assert cut.tokens_cut == 4
    assert cut.row.input_ids == whole.input_ids[:-4]
    assert cut.row.labels == whole.labels[:-4]
    assert encode_examples([ROWS["single"]], "s", make("chatml"), tokenizer, length) == [EncodedExample(whole, 0)]


def test_a_response_that_is_cut_off_wholly_leaves_a_row_without_trained_tokens(tokenizer):
    prompt = encode_prompt(ROWS["single"], make("chatml"), tokenizer, 4096)
    (cut,) = encode_examples([ROWS["single"]], "s", make("chatml"), tokenizer, len(prompt))
    assert cut.row.loss_tokens == 0
    assert cut.tokens_cut > 0


def test_a_long_prompt_keeps_its_end_and_its_beginning_of_sequence(tokenizer, beginning):
    whole = encode_prompt(ROWS["single"], make("chatml"), tokenizer, 4096)
    assert encode_prompt(ROWS["single"], make("chatml"), tokenizer, 10) == whole[-10:]
    begun = encode_prompt(ROWS["single"], make("chatml"), beginning, 10)
    assert begun == [beginning.bos_token_id, *encode_prompt(ROWS["single"], make("chatml"), beginning, 4096)[-9:]]


def test_encode_all_keeps_the_order_reports_progress_and_equals_encode(tokenizer):
    examples = [example(f"Count {i}.", f"It is {i}.", place=f"rows.jsonl:{i}") for i in range(1100)]
    seen = []
    found = encode_examples(examples, "s", make("alpaca"), tokenizer, 256, lambda *state: seen.append(state))
    assert [one.row for one in found[::97]] == [
        encode_example(e, "s", make("alpaca"), tokenizer, 256) for e in examples[::97]
    ]
    assert seen[-1] == ("tokenise", 1100, 1100, "s", "rows")
    assert [state[1] for state in seen] == [512, 1024, 1100]
    assert encode_examples([], "s", make("alpaca"), tokenizer, 256) == []


@pytest.mark.parametrize("blank", ["", " \n\t"])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_response_is_named_by_its_place(name, blank, tokenizer):
    for row in (example("q", blank), example("q", blank, "q", "a")):
        with pytest.raises(HarnessError, match="is empty") as error:
            encode_example(row, "s", make(name), tokenizer, 4096)
        assert error.value.where == "rows.jsonl:7"


def test_a_conversation_without_a_response_is_named_by_its_place(tokenizer):
    for row in (example("q"), Example("id", (), "rows.jsonl:7")):
        with pytest.raises(HarnessError, match=r"rows\.jsonl:7: the conversation does not end with a response"):
            encode_example(row, "s", make("chatml"), tokenizer, 4096)


def test_a_refusal_of_the_template_gets_the_rows_place(tokenizer):
    row = Example("id", (Message("user", "q"), *ROWS["single"].messages), "rows.jsonl:9")
    with pytest.raises(HarnessError, match=r"^rows\.jsonl:9: template llama2: .*; .*chatml"):
        encode_example(row, "s", make("llama2"), tokenizer, 4096)


@pytest.mark.parametrize("spans", [[], [Span("text", markup=True), Span("The Elbe.")], [Span("", train=True)]])
def test_a_template_that_renders_nothing_trainable_is_named(spans, tokenizer):
    with pytest.raises(HarnessError, match=r"rows\.jsonl:7: the template told renders nothing trainable"):
        encode_example(ROWS["single"], "s", Spans(spans), tokenizer, 4096)


def test_fingerprints_tell_templates_apart_and_are_stable(tokenizer):
    prints = {name: template_fingerprint(make(name), tokenizer) for name in NAMES}
    assert prints["chatml"] == prints["tokenizer"]  # this tokenizer's chat template is ChatML
    assert len(set(prints.values())) == len(NAMES) - 1
    assert all(len(value) == 64 for value in prints.values())
    assert template_fingerprint(make("chatml"), tokenizer) == prints["chatml"]
    assert template_fingerprint(make("chatml", system="Be brief."), tokenizer) != prints["chatml"]


def test_a_fingerprint_sees_the_mask_and_records_refusals(tokenizer):
    spans = [Span("q", markup=True), Span("a", train=True)]
    other = [Span("q", markup=True), Span("a", train=False)]
    assert template_fingerprint(Spans(spans), tokenizer) != template_fingerprint(Spans(other), tokenizer)

    class Refuses(Spans):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            if messages[0].role == "system":
                raise HarnessError("template told", "no system")
            return super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)

    assert template_fingerprint(Refuses(spans), tokenizer) != template_fingerprint(Spans(spans), tokenizer)


def test_the_canonical_conversations_have_every_shape():
    roles = {tuple(message.role for message in messages) for messages in CANONICAL_CONVERSATIONS}
    assert len(roles) == 7
    messages = [message for conversation in CANONICAL_CONVERSATIONS for message in conversation]
    assert any(message.input for message in messages)
    assert any(message.tool_calls for message in messages)
    assert {message.role for message in messages} == {"system", "user", "assistant", "tool"}
    assert any(message.role == "assistant" and not message.train for message in messages)
