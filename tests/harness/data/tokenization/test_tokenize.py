"""One row: exact labels, one begin-of-sequence token, prompts equal to training."""

from __future__ import annotations

import pytest
from support.tokenization_cases import create_template
from tokenizers.processors import TemplateProcessing

from harness import Example, HarnessError, Message, Span, Template
from harness.data.tokenization.fingerprints import CANONICAL_CONVERSATIONS, template_fingerprint
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example, tokenize_examples

TEMPLATES = ["alpaca", "chatml", "instruction_zh", "llama2", "tokenizer"]
"""Templates that work with the test tokenizer."""
HEADER_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}<|im_end|>{% endfor %}"
HEADER_TEMPLATE += "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"


def build_example(*contents, location="rows.jsonl:7", system=None):
    messages = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Example("id", tuple([Message("system", system)] * (system is not None) + messages), location)


EXAMPLES = {
    "single": build_example("Name a river.", "The Elbe."),
    "multi": build_example("Name a river.", "The Elbe.", "Another.", "The Oder, too."),
    "system": build_example("Name a river.", "The Elbe.", system="Be brief."),
    "chinese": build_example("说一条河。", "长江是一条河。", "还有呢？", "黄河。"),
    "emoji": build_example("👍🏽?", "👩‍👩‍👧 🙂é"),
    "input": Example("id", (Message("user", "Sum up.", input="A\nB"), Message("assistant", "AB")), "rows.jsonl:7"),
}


@pytest.fixture
def bos_tokenizer(tokenizer):
    """Return the tokenizer, changed to add its begin-of-sequence token itself."""
    from transformers import PreTrainedTokenizerFast

    tokenizer_with_bos = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
    )
    processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer_with_bos.bos_token_id)])
    tokenizer_with_bos.backend_tokenizer.post_processor = processor
    assert tokenizer_with_bos("a").input_ids[0] == tokenizer_with_bos.bos_token_id
    return tokenizer_with_bos


class FixedSpans(Template):
    """A template that renders fixed spans."""

    name = "fixed"

    def __init__(self, spans, prompt_spans=()):
        self.spans, self.prompt_spans = spans, prompt_spans

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return self.prompt_spans if add_generation_prompt else self.spans

    def stop_strings(self, tokenizer):
        return ("</s>",)


@pytest.mark.parametrize("case", sorted(EXAMPLES))
@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_tokens_are_the_responses_and_their_ends_of_turn(name, case, tokenizer):
    template = create_template(name)
    row = tokenize_example(EXAMPLES[case], "s", template, tokenizer, 4096)
    assert all(label in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    end = template.stop_strings(tokenizer)[0]
    pad = " " if name == "llama2" else ""
    expected = "".join(f"{pad}{m.content}{pad}{end}" for m in EXAMPLES[case].messages if m.role == "assistant")
    trained = [label for label in row.labels if label != -100]
    assert tokenizer.decode(trained, clean_up_tokenization_spaces=False) == expected


@pytest.mark.parametrize("case", sorted(EXAMPLES))
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_is_a_prefix_of_the_training_row(name, case, tokenizer):
    template = create_template(name)
    row = tokenize_example(EXAMPLES[case], "s", template, tokenizer, 4096)
    prompt = encode_prompt(EXAMPLES[case], template, tokenizer, 4096)
    assert prompt == list(row.input_ids[: len(prompt)])
    last = max(i for i, label in enumerate(row.labels) if label == -100 and i < len(prompt))
    assert last == len(prompt) - 1
    assert row.labels[len(prompt)] != -100


def test_prompt_that_ends_in_white_space_equals_training():
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
    template, line = create_template("jinja", template=HEADER_TEMPLATE), vocabulary["Ċ"]
    row = tokenize_example(EXAMPLES["single"], "s", template, tokenizer, 4096)
    prompt = encode_prompt(EXAMPLES["single"], template, tokenizer, 4096)
    assert tokenizer("\n\n", add_special_tokens=False).input_ids == [vocabulary["ĊĊ"]]
    assert prompt[-2:] == [line, line]
    assert prompt == list(row.input_ids[: len(prompt)])


@pytest.mark.parametrize("name", TEMPLATES)
def test_row_has_one_bos_token_where_the_tokenizer_adds_it(name, bos_tokenizer):
    row = tokenize_example(EXAMPLES["single"], "s", create_template(name), bos_tokenizer, 4096)
    assert row.input_ids[0] == bos_tokenizer.bos_token_id
    assert row.input_ids.count(bos_tokenizer.bos_token_id) == 1
    assert row.labels[0] == -100
    prompt = encode_prompt(EXAMPLES["single"], create_template(name), bos_tokenizer, 4096)
    assert prompt == list(row.input_ids[: len(prompt)])


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"llama2"}))
def test_row_has_no_bos_token_where_nothing_adds_it(name, tokenizer):
    assert (
        tokenizer.bos_token_id
        not in tokenize_example(EXAMPLES["single"], "s", create_template(name), tokenizer, 4096).input_ids
    )


def test_bos_text_in_a_message_does_not_replace_the_bos_token(bos_tokenizer):
    template = FixedSpans([Span("<s>hi"), Span("a", train=True), Span("</s>", train=True, markup=True)])
    ids = tokenize_example(EXAMPLES["single"], "s", template, bos_tokenizer, 4096, verify=False).input_ids
    assert ids[0] == bos_tokenizer.bos_token_id
    assert ids.count(bos_tokenizer.bos_token_id) == 1


def test_token_that_begins_in_a_header_is_not_trained():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([":", "a", "b", ":a", "</s>"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "a")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    template = FixedSpans([Span("b:", markup=True), Span("ab", train=True), Span("</s>", train=True, markup=True)])
    row = tokenize_example(EXAMPLES["single"], "s", template, tokenizer, 4096)
    assert [tokenizer.convert_ids_to_tokens(token) for token in row.input_ids] == ["b", ":a", "b", "</s>"]
    assert row.labels == (-100, -100, vocabulary["b"], vocabulary["</s>"])


def test_truncation_cuts_on_the_right_and_counts_tokens(tokenizer):
    untruncated = tokenize_example(EXAMPLES["single"], "s", create_template("chatml"), tokenizer, 4096)
    length = len(untruncated.input_ids)
    (cut,) = tokenize_examples([EXAMPLES["single"]], "s", create_template("chatml"), tokenizer, length - 4)
    assert cut.tokens_cut == 4
    assert cut.input_ids == untruncated.input_ids[:-4]
    assert cut.labels == untruncated.labels[:-4]
    (uncut,) = tokenize_examples([EXAMPLES["single"]], "s", create_template("chatml"), tokenizer, length)
    assert (uncut, uncut.tokens_cut) == (untruncated, 0)


def test_truncated_response_leaves_no_trained_tokens(tokenizer):
    prompt = encode_prompt(EXAMPLES["single"], create_template("chatml"), tokenizer, 4096)
    (cut,) = tokenize_examples([EXAMPLES["single"]], "s", create_template("chatml"), tokenizer, len(prompt))
    assert cut.loss_tokens == 0
    assert cut.tokens_cut > 0


def test_long_prompt_keeps_its_end_and_the_bos_token(tokenizer, bos_tokenizer):
    untruncated = encode_prompt(EXAMPLES["single"], create_template("chatml"), tokenizer, 4096)
    assert encode_prompt(EXAMPLES["single"], create_template("chatml"), tokenizer, 10) == untruncated[-10:]
    with_bos = encode_prompt(EXAMPLES["single"], create_template("chatml"), bos_tokenizer, 10)
    assert with_bos == [
        bos_tokenizer.bos_token_id,
        *encode_prompt(EXAMPLES["single"], create_template("chatml"), bos_tokenizer, 4096)[-9:],
    ]


def test_tokenize_examples_equals_tokenize_example_and_reports_progress(tokenizer):
    examples = [build_example(f"Count {i}.", f"It is {i}.", location=f"rows.jsonl:{i}") for i in range(1100)]
    calls = []
    rows = tokenize_examples(
        examples, "s", create_template("alpaca"), tokenizer, 256, lambda *state: calls.append(state)
    )
    assert rows[::97] == [
        tokenize_example(example, "s", create_template("alpaca"), tokenizer, 256) for example in examples[::97]
    ]
    assert calls[-1] == ("tokenize", 1100, 1100, "s", "rows")
    assert [state[1] for state in calls] == [512, 1024, 1100]
    assert tokenize_examples([], "s", create_template("alpaca"), tokenizer, 256) == []


@pytest.mark.parametrize("blank", ["", " \n\t"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_empty_response_is_an_error_at_its_location(name, blank, tokenizer):
    for row in (build_example("q", blank), build_example("q", blank, "q", "a")):
        with pytest.raises(HarnessError, match="is empty") as error:
            tokenize_example(row, "s", create_template(name), tokenizer, 4096)
        assert error.value.where == "rows.jsonl:7"


def test_conversation_without_a_response_is_an_error_at_its_location(tokenizer):
    for row in (build_example("q"), Example("id", (), "rows.jsonl:7")):
        with pytest.raises(HarnessError, match=r"rows\.jsonl:7: the conversation does not end with a response"):
            tokenize_example(row, "s", create_template("chatml"), tokenizer, 4096)


def test_template_error_gets_the_rows_location(tokenizer):
    row = Example("id", (Message("user", "q"), *EXAMPLES["single"].messages), "rows.jsonl:9")
    with pytest.raises(HarnessError, match=r"^rows\.jsonl:9: template llama2: .*; .*chatml"):
        tokenize_example(row, "s", create_template("llama2"), tokenizer, 4096)


@pytest.mark.parametrize("spans", [[], [Span("text", markup=True), Span("The Elbe.")], [Span("", train=True)]])
def test_template_that_trains_nothing_is_an_error(spans, tokenizer):
    with pytest.raises(HarnessError, match=r"rows\.jsonl:7: the template fixed renders nothing trainable"):
        tokenize_example(EXAMPLES["single"], "s", FixedSpans(spans), tokenizer, 4096)


def test_template_fingerprints_are_distinct_and_stable(tokenizer):
    fingerprints = {name: template_fingerprint(create_template(name), tokenizer) for name in TEMPLATES}
    assert fingerprints["chatml"] == fingerprints["tokenizer"]  # this tokenizer's chat template is ChatML
    assert len(set(fingerprints.values())) == len(TEMPLATES) - 1
    assert all(len(value) == 64 for value in fingerprints.values())
    assert template_fingerprint(create_template("chatml"), tokenizer) == fingerprints["chatml"]
    assert template_fingerprint(create_template("chatml", system="Be brief."), tokenizer) != fingerprints["chatml"]


def test_template_fingerprint_covers_the_mask_and_refusals(tokenizer):
    spans = [Span("q", markup=True), Span("a", train=True)]
    other = [Span("q", markup=True), Span("a", train=False)]
    assert template_fingerprint(FixedSpans(spans), tokenizer) != template_fingerprint(FixedSpans(other), tokenizer)

    class Refuses(FixedSpans):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            if messages[0].role == "system":
                raise HarnessError("template fixed", "no system")
            return super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)

    assert template_fingerprint(Refuses(spans), tokenizer) != template_fingerprint(FixedSpans(spans), tokenizer)


def test_canonical_conversations_have_every_shape():
    roles = {tuple(message.role for message in messages) for messages in CANONICAL_CONVERSATIONS}
    assert len(roles) == 7
    messages = [message for conversation in CANONICAL_CONVERSATIONS for message in conversation]
    assert any(message.input for message in messages)
    assert any(message.tool_calls for message in messages)
    assert {message.role for message in messages} == {"system", "user", "assistant", "tool"}
    assert any(message.role == "assistant" and not message.train for message in messages)
