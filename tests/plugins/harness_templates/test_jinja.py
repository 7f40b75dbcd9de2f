"""Chat templates from the spec: exact spans whatever the template does, or a clear refusal."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from harness import Example, HarnessError, Message, ToolCall
from harness.data.reading.row_formats import parse_examples
from harness.data.reading.row_options import RowOptions
from harness.data.tokenization.mask_verification import MaskVerifier
from harness.data.tokenization.tokenize import tokenize_batches, tokenize_example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    "{{ '<|im_end|>' if loop.last or m.role == 'user' else '</s>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_only_last(messages):
    """Return the messages with only the last response trained."""
    return (*(dataclasses.replace(message, train=False) for message in messages[:-1]), messages[-1])


def test_llama2_as_jinja_equals_the_template_llama2(make, tokenizer, conversations, llama2_jinja, example):
    for messages in conversations.values():
        row = tokenize_example(example(messages), "s", make("jinja", template=llama2_jinja), tokenizer, 4096)
        assert row == tokenize_example(example(messages), "s", make("llama2"), tokenizer, 4096)


def test_file_and_text_render_the_same(make, tokenizer, multi, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML, encoding="utf-8")
    from_file, inline = make("jinja", file=str(path)), make("jinja", template=CHATML)
    assert from_file.render(multi, tokenizer) == inline.render(multi, tokenizer)


def test_contents_that_the_template_strips_are_located(make, tokenizer, marked):
    messages = (Message("user", " q \n"), Message("assistant", "\n\ta  "))
    spans = make("jinja", template=CHATML).render(messages, tokenizer)
    assert [span.text for span in spans if not span.markup] == ["q", "a"]
    assert marked(spans).endswith("<|im_start|>assistant\n⟦a<|im_end|>⟧\n")


def test_an_end_of_sequence_after_the_end_of_turn_is_trained(make, tokenizer, single, marked):
    template = make("jinja", template=PHI3)
    assert marked(template.render(single, tokenizer)).endswith("⟦The Elbe.<|im_end|>\n</s>⟧")
    assert template.stop_strings(tokenizer) == ("<|im_end|>", "</s>")


def test_a_template_that_rewrites_earlier_turns_is_refused_and_may_train_the_last(make, tokenizer, multi, marked):
    for source in (PHI3, DROPS_REASONING):
        with pytest.raises(HarnessError, match="rewrites message 2") as error:
            make("jinja", template=source).render(multi, tokenizer)
        assert 'set the source\'s option train_on to "each" or "last"' in error.value.hint
        last = marked(make("jinja", template=source).render(train_only_last(multi), tokenizer))
        assert last.count("⟦") == 1
        assert "⟦长江 🙂<|im_end|>" in last


def test_a_response_is_trained_if_its_message_is(make, tokenizer, multi, marked):
    text = marked(make("jinja", template=CHATML).render(train_only_last(multi), tokenizer))
    assert text.count("⟦") == 1
    assert text.endswith("⟦长江 🙂<|im_end|>⟧\n")


def test_a_prompt_that_is_not_the_beginning_of_the_full_text_is_refused(make, tokenizer, single):
    source = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    with pytest.raises(HarnessError, match="up to message 2 is not the beginning") as error:
        make("jinja", template=source).render(single, tokenizer)
    assert "train_on" not in error.value.hint


@pytest.mark.parametrize("content", ["m.content", "m.content + m.content"])
def test_a_prompt_without_the_conversation_is_refused(content, make, tokenizer, single):
    source = "{% if not add_generation_prompt %}" + CHATML.replace("m.content | trim", content) + "{% endif %}"
    with pytest.raises(HarnessError, match="prompt for message 2 differs from the text before"):
        make("jinja", template=source).render(single, tokenizer)


def test_a_header_that_only_training_writes_is_trained(make, tokenizer, single, marked):
    # Generation would begin right after the role, so the model itself has to write what follows it.
    source = CHATML.replace("{{ m.content | trim }}", "{{ '[answer]' if m.role == 'assistant' }}{{ m.content }}")
    text = marked(make("jinja", template=source).render(single, tokenizer))
    assert text.endswith("<|im_start|>assistant\n⟦[answer]The Elbe.<|im_end|>⟧\n")


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_template_without_an_end_of_turn_is_refused(end, make, tokenizer, single):
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}" + "{{ '" + end.replace("\n", "\\n") + "' }}{% endfor %}"
    )
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(HarnessError, match="no end of turn") as error:
        make("jinja", template=source).render(single, tokenizer)
    assert "eos_token" in error.value.hint


def test_a_template_that_omits_a_message_is_refused(make, tokenizer, conversations):
    source = "{% for m in messages if m.role != 'system' %}" + CHATML.split("%}", 1)[1]
    with pytest.raises(HarnessError, match=r"omits the content of message 1 \(system\)"):
        make("jinja", template=source).render(conversations["system"], tokenizer)


def test_rewritten_contents_are_trained_in_full_or_refused(make, tokenizer, marked):
    source = CHATML.replace("m.content | trim", "m.content | replace('colour', 'color')")
    template = make("jinja", template=source)
    messages = (Message("user", "Which?"), Message("assistant", "The colour."))
    assert marked(template.render(messages, tokenizer)).endswith("assistant\n⟦The color.<|im_end|>⟧\n")
    hostile = (Message("user", "Which colour <|im_end|>?"), Message("assistant", "The colour."))
    with pytest.raises(HarnessError, match=r"contains <\|im_end\|>, and the chat template rewrites that message"):
        template.render(hostile, tokenizer)


def test_variables_are_passed_to_the_template(make, tokenizer, single):
    source = CHATML.replace("assistant\n{%", "assistant\n{{ '' if think else '<think></think>' }}{%")
    assert make("jinja", template=source, variables={"think": True}).render(single, tokenizer)
    with pytest.raises(HarnessError, match="is not the beginning"):
        make("jinja", template=source, variables={"think": False}).render(single, tokenizer)


def test_the_clock_of_a_template_shows_the_option_date(make, tokenizer, single):
    source = "{{ strftime_now('%d %b %Y') if strftime_now is defined }}|" + CHATML
    spans = make("jinja", template=source).render(single, tokenizer)
    assert spans[0].text.startswith("26 Jul 2024|<|im_start|>user")
    spans = make("jinja", template=source, date="2026-01-02").render(single, tokenizer)
    assert spans[0].text.startswith("02 Jan 2026|")


def test_a_template_cannot_leave_the_sandbox(make, tokenizer, single):
    source = "{{ messages.__class__.__mro__ }}" + CHATML
    with pytest.raises(HarnessError, match="SecurityError"):
        make("jinja", template=source).render(single, tokenizer)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ messages[9].content }}", "UndefinedError"),
    ],
)
def test_a_failing_template_is_named_with_its_reason(source, what, make, tokenizer, single):
    with pytest.raises(HarnessError, match=what) as error:
        make("jinja", template=source).render(single, tokenizer)
    assert error.value.where == "template jinja"


def test_a_response_written_before_its_prompt_is_refused(make, tokenizer, single):
    source = "{{ messages[-1].content }}" + CHATML
    with pytest.raises(HarnessError):
        make("jinja", template=source).render(single, tokenizer)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "neither"),
        ({"template": CHATML, "file": "x.jinja"}, "both"),
        ({"file": "/nowhere/x.jinja"}, "cannot be read"),
        ({"template": CHATML, "variables": {"tokenize": True}}, "'tokenize' is reserved"),
        ({"template": CHATML, "date": "2024-13-01"}, "is not a date"),
    ],
)
def test_invalid_options_are_refused_on_creation(options, what, make):
    with pytest.raises(HarnessError, match=what):
        make("jinja", **options)


def test_a_file_that_is_not_utf_8_is_refused(make, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(HarnessError, match="not UTF-8"):
        make("jinja", file=str(path))


@pytest.mark.parametrize("name", ["gemma3", "llama3", "lfm2", "qwen2_5", "cohere", "gemma4_v5"])
def test_chat_templates_of_model_families_train_responses_and_ends_of_turn(name, make, tokenizer, multi, shipped):
    spans = make("jinja", template=shipped(name)).render(multi, tokenizer)
    trained = [span for span in spans if span.train]
    assert [span.text for span in trained if not span.markup] == ["The Elbe.", "长江 🙂"]
    assert len({span.text for span in trained if span.markup}) == 1
    assert "".join(span.text for span in spans).count("Name a river.") == 1


@pytest.mark.parametrize("name", ["qwen3", "phi3", "gptoss", "qwen3_5_think"])
def test_chat_templates_that_rewrite_earlier_turns_train_the_last_response(name, make, tokenizer, multi, shipped):
    template = make("jinja", template=shipped(name))
    with pytest.raises(HarnessError) as error:
        template.render(multi, tokenizer)
    assert "train_on" in error.value.hint or "variables" in error.value.hint
    variables = {"enable_thinking": False} if "qwen" in name else {}
    spans = make("jinja", template=shipped(name), variables=variables).render(train_only_last(multi), tokenizer)
    assert [span.text for span in spans if span.train and not span.markup] == ["长江 🙂"]
    text = "".join(span.text for span in spans)
    assert text.index("The Elbe.") < text.index("再说一条河。") < text.index("长江 🙂")


# -- reasoning --------------------------------------------------------------------------------------------------------

REASONED = (Message("user", "2 + 2?"), Message("assistant", "4", reasoning="two plus two is four"))
INLINE = (Message("user", "2 + 2?"), Message("assistant", "<think>\ntwo plus two is four\n</think>\n\n4"))
QWEN3_ANSWER = "<think>\ntwo plus two is four\n</think>\n\n4<|im_end|>"


def trained_texts(messages, template, tokenizer):
    """Return the trained text of a row whose mask has been verified."""
    row = Example("0" * 16, messages, "rows.jsonl:7")
    verifier = MaskVerifier(template, tokenizer)
    ((examples, masked),) = tokenize_batches([row, row], template, tokenizer)
    verifier.verify_rows(examples, masked)
    return [tokenizer.decode(masked[0].ids[begin:end]) for begin, end in masked[0].trained_spans]


@pytest.mark.parametrize("messages", [REASONED, INLINE])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_reasoning_is_trained(messages, as_tokens, make, tokenizer, shipped):
    if as_tokens:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens(["<think>", "</think>"])
    assert trained_texts(messages, make("jinja", template=shipped("qwen3")), tokenizer) == [QWEN3_ANSWER]
    # These templates open the block in the header of the response: the rest is trained.
    for name in ("qwen3_5_think", "qwen3_6", "qwen3_8"):
        template = make("jinja", template=shipped(name))
        assert trained_texts(messages, template, tokenizer) == [QWEN3_ANSWER.removeprefix("<think>\n")]


def test_a_response_that_is_a_word_of_the_markers_is_verified(make, tokenizer, shipped):
    messages = (REASONED[0], dataclasses.replace(REASONED[1], content="think", reasoning="in"))
    for name in ("qwen3", "qwen3_5_think"):
        (text,) = trained_texts(messages, make("jinja", template=shipped(name)), tokenizer)
        assert text.endswith("in\n</think>\n\nthink<|im_end|>")


def test_reasoning_of_earlier_turns_may_be_dropped_and_trained_reasoning_may_not(make, tokenizer, shipped):
    template = make("jinja", template=shipped("qwen3"))
    earlier = tuple(dataclasses.replace(message, train=False) for message in REASONED)
    assert trained_texts((*earlier, *REASONED), template, tokenizer) == [QWEN3_ANSWER]
    with pytest.raises(HarnessError, match="omits the reasoning of message 2") as error:
        make("jinja", template=CHATML).render(REASONED, tokenizer)
    assert 'option "reasoning" to "drop"' in error.value.hint


def test_each_response_of_a_template_that_rewrites_earlier_turns_is_trained(make, tokenizer, shipped):
    turns = [
        {"role": message.role, "content": message.content, "thinking": message.reasoning}
        for message in (*REASONED, *REASONED)
    ]
    rows = parse_examples({"messages": turns}, "messages", "x:1", RowOptions(train_on="each"))
    template = make("jinja", template=shipped("qwen3"))
    assert [trained_texts(row.messages, template, tokenizer) for row in rows] == [[QWEN3_ANSWER]] * 2


@pytest.mark.parametrize(
    "name", ["chatml", "qwen", "llama3", "mistral", "deepseek", "gemma", "phi", "alpaca", "vicuna"]
)
def test_built_in_formats_refuse_reasoning_that_they_would_not_train(name, make, tokenizer):
    with pytest.raises(HarnessError, match=r"does not write the reasoning of message [23]"):
        make(name).render(REASONED, tokenizer)


# -- tools ------------------------------------------------------------------------------------------------------------

TOOLED = (
    "{% if tools %}{% for t in tools %}[tool]{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[call]{{ c.id }} {{ c.function.name }}("
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}){% endfor %}"
    "{{ '[for ' + m.tool_call_id + ' ' + m.name + ']' if m.role == 'tool' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tools_and_calls_are_passed_in_openais_shape(make, tokenizer, marked):
    messages = (
        Message("user", "q"),
        Message("assistant", "Wait.", tool_calls=(ToolCall("f", {"x": 1}), ToolCall("g", {"y": [2]}))),
        Message("tool", "two", name="g"),
        Message("tool", "one", name="f"),
        Message("assistant", "a"),
    )
    tools = [{"name": "f", "parameters": {}}, {"name": "g"}]
    assert marked(make("jinja", template=TOOLED).render(messages, tokenizer, tools=tools)) == (
        '[tool]{"type": "function", "function": {"name": "f", "parameters": {}}}'
        '[tool]{"type": "function", "function": {"name": "g"}}<|im_end|>\n'
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
        "⟦Wait.[call]call00001 f(x=1)[call]call00002 g(y=[2])<|im_end|>⟧\n"
        "<|im_start|>tool\ntwo[for call00002 g]<|im_end|>\n<|im_start|>tool\none[for call00001 f]<|im_end|>\n"
        "<|im_start|>assistant\n⟦a<|im_end|>⟧\n"
    )


NINE = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% endfor %}"
    "{% endfor %}" + TOOLED
)
"""The check in the chat templates of Mistral's tokenizers."""


@pytest.mark.parametrize(
    ("source", "ids", "written"),
    [
        (TOOLED, ("toolu_1", "toolu_2"), ("toolu_1", "toolu_2")),
        (TOOLED, ("a<|im_end|>b", "c"), ("a<|im_end|>b", "c")),
        (TOOLED, ("toolu_1", None), ("call00001", "call00002")),
        (NINE, ("toolu_1", "toolu_2"), ("call00001", "call00002")),
        (NINE, ("aB3dE6gH9", "kL2mN5pQ8"), ("aB3dE6gH9", "kL2mN5pQ8")),
    ],
)
def test_the_datas_call_ids_are_used_unless_the_template_refuses_them(
    source, ids, written, make, tokenizer, marked, example
):
    template, first, second = make("jinja", template=source), *ids
    messages = (
        Message("user", "q"),
        Message("assistant", "", tool_calls=(ToolCall("f", {"x": 1}, first), ToolCall("f", {"x": 2}, second))),
        Message("tool", "one", name="f", tool_call_id=first),
        Message("tool", "two", name="f", tool_call_id=second),
        Message("assistant", "a"),
    )
    assert marked(template.render(messages, tokenizer)) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
        f"⟦[call]{written[0]} f(x=1)[call]{written[1]} f(x=2)<|im_end|>⟧\n"
        f"<|im_start|>tool\none[for {written[0]} f]<|im_end|>\n<|im_start|>tool\ntwo[for {written[1]} f]<|im_end|>\n"
        "<|im_start|>assistant\n⟦a<|im_end|>⟧\n"
    )
    row = tokenize_example(example(messages), "s", template, tokenizer, 4096)
    assert row.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 5, "no id can end a turn"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "llama3_1", "lfm2_v2", "gemma4_v5"])
def test_chat_templates_of_model_families_train_calls(name, make, family, calling, weather, shipped, example):
    tokenizer, template = family("qwen"), make("jinja", template=shipped(name))
    messages = train_only_last(calling) if name == "gemma4_v5" else calling
    spans = template.render(messages, tokenizer, tools=[weather])
    trained = "|".join(span.text for span in spans if span.train)
    assert trained.count("Grey.") == 1
    assert ("get_weather" in trained) is (messages == calling)
    assert '{"sky": "grey"}' not in trained
    assert "The weather in a city" not in trained
    text = "".join(span.text for span in spans)
    row = tokenize_example(example(messages, [weather]), "s", template, tokenizer, 4096)
    assert tokenizer.decode(row.input_ids) == text


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (TOOLED.replace("{% if tools %}", "{% if false %}"), "omits the list of tools"),
        (TOOLED.replace("c.function.name", "''"), "omits the tool calls"),
        (TOOLED.replace("<|im_end|>\n{% endfor %}", "{{ '<|im_end|>' if not m.tool_calls }}\n{% endfor %}"), "no end"),
    ],
)
def test_a_template_that_omits_tools_is_refused(source, what, make, tokenizer, calling, weather):
    with pytest.raises(HarnessError, match=what):
        make("jinja", template=source).render(calling, tokenizer, tools=[weather])


def test_the_number_of_cached_layouts_is_bounded(make, tokenizer, monkeypatch):
    from harness_templates import jinja_layout

    monkeypatch.setattr(jinja_layout, "MAX_CACHED_LAYOUTS", 3)
    template = make("jinja", template=TOOLED)
    for number in range(9):
        call = Message("assistant", "", tool_calls=(ToolCall("f", {"x": number}),))
        template.render((Message("user", "q"), call), tokenizer)
    assert len(template._layouts[tokenizer]) == 3
