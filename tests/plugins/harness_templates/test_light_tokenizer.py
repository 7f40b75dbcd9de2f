"""The light tokenizer equals that of transformers: ids, special tokens, decoded texts, masks and chat templates."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import transformers
import trl
from jinja2 import TemplateError
from support.tokenization_cases import (
    CONTROL_TOKENS,
    TOKENIZERS,
    Turns,
    build_conversation,
    build_plain_text,
    build_tool_conversation,
)
from tokenizers import AddedToken, pre_tokenizers, processors

from harness.data.tokenization.fingerprints import tokenization_fingerprint
from harness.data.tokenization.tokenize import tokenize_example
from harness.model.light_tokenizer import SPECIAL_TOKEN_NAMES
from harness.model.tokenizer_snapshot import load_snapshot, save_snapshot

TEXTS = (
    *("", " ", "a", "A river", " The Elbe ", "two\n\nlines\t\n", "長江 是 ﬁ 🙂 e\u0301", "<0x41>▁▁x", "I'm 12345."),
    *(f"a {token} b{token}c  {token}  \n" for token in (*CONTROL_TOKENS, "[INST]", "<think>", "<own>")),
)
FAMILIES = ("llama3", "qwen", "gemma", "phi", "deepseek", "mistral", "tekken", "llama2")
PIECES = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz"])}
BYTES = {token: index for index, token in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
CLASSES = {
    "llama": lambda: transformers.LlamaTokenizer(vocab={**PIECES, "ab": 30}, merges=[("a", "b")]),
    "llama_not_legacy": lambda: transformers.LlamaTokenizer(
        vocab={**PIECES, "ab": 30}, merges=[("a", "b")], legacy=False, add_prefix_space=False, add_eos_token=True
    ),
    "qwen2": lambda: transformers.Qwen2Tokenizer(vocab=BYTES, merges=[]),
    "gpt2": lambda: transformers.GPT2Tokenizer(vocab=BYTES, merges=[], add_prefix_space=True),
    "gemma": lambda: transformers.GemmaTokenizer(
        vocab={"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "▁": 4, "a": 5, "b": 6, "ab": 7}, merges=[("a", "b")]
    ),
    "gpt_neox": lambda: transformers.GPTNeoXTokenizer(vocab=BYTES, merges=[]),
}
"""Tokenizer classes that build their backend themselves, each in another way."""


def add_tokens(tokenizer):
    """Return a copy with added tokens of every kind."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<own>", lstrip=True, rstrip=True), AddedToken("river", normalized=True)])
    tokenizer.add_special_tokens({"sep_token": AddedToken("<sep>", single_word=True)})
    return tokenizer


def with_template(tokenizer, single):
    tokenizer = copy.deepcopy(tokenizer)
    begin, end = tokenizer.unk_token, tokenizer.eos_token
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (begin, end)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single.format(begin=begin, end=end), special_tokens=ids
    )
    return tokenizer


@pytest.fixture
def light_copy(tmp_path):
    """Return light_copy(tokenizer): its light tokenizer, which must not load the full one."""

    def build(tokenizer):
        file = tmp_path / "cache" / "snapshot.json"
        assert save_snapshot(tokenizer, file)
        return load_snapshot(file, lambda: pytest.fail("the tokenizer of transformers is loaded"))

    return build


def require_equal(light, tokenizer):
    """Require equal ids, texts, vocabulary and special tokens."""
    for text in TEXTS:
        for special in (True, False):
            ids = tokenizer(text, add_special_tokens=special)["input_ids"]
            assert light(text, add_special_tokens=special)["input_ids"] == ids, text
            assert light(text, add_special_tokens=special).input_ids == ids
        for skip in (True, False):
            assert light.decode(ids, skip, clean_up_tokenization_spaces=False) == tokenizer.decode(
                ids, skip, clean_up_tokenization_spaces=False
            )
        assert light.convert_ids_to_tokens(ids) == tokenizer.convert_ids_to_tokens(ids)
    assert light.get_vocab() == tokenizer.get_vocab()
    assert len(light) == len(tokenizer)
    assert light.added_tokens_decoder == tokenizer.added_tokens_decoder
    assert light.added_tokens_encoder == tokenizer.added_tokens_encoder
    assert light.special_tokens_map == tokenizer.special_tokens_map
    for name in SPECIAL_TOKEN_NAMES:
        assert getattr(light, name) == getattr(tokenizer, name), name
        assert getattr(light, f"{name}_id") == getattr(tokenizer, f"{name}_id"), name
    assert str(light.init_kwargs["pad_token"]) == str(tokenizer.init_kwargs.get("pad_token"))
    assert light.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_light_tokenizer_equals_that_of_transformers(name, light_copy):
    require_equal(light_copy(TOKENIZERS[name]), TOKENIZERS[name])
    grown = add_tokens(TOKENIZERS[name])
    require_equal(light_copy(grown), grown)


@pytest.mark.parametrize("single", ["{begin} $A", "$A {end}", "{begin} $A {end}"])
def test_tokens_that_a_tokenizer_adds_are_equal(single, light_copy):
    for tokenizer in (TOKENIZERS["byte_level"], TOKENIZERS["legacy"], TOKENIZERS["unigram"], TOKENIZERS["wordpiece"]):
        changed = with_template(tokenizer, single)
        require_equal(light_copy(changed), changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokenizer_of_each_family_is_equal(name, family, light_copy):
    require_equal(light_copy(family(name)), family(name))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_that_builds_its_own_backend_is_equal_after_it_is_saved_and_loaded(name, tmp_path, light_copy):
    CLASSES[name]().save_pretrained(tmp_path / "model")
    tokenizer = type(CLASSES[name]()).from_pretrained(tmp_path / "model")
    require_equal(light_copy(tokenizer), tokenizer)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_rows_masks_and_cache_keys_are_equal(name, light_copy):
    """`check` and `run` share the cache of tokens, so the light tokenizer must have the fingerprint of the other."""
    tokenizer = TOKENIZERS[name]
    light, template = light_copy(tokenizer), Turns()
    assert tokenization_fingerprint(template, light) == tokenization_fingerprint(template, tokenizer)
    for example in (
        build_conversation("Name a river.", "The Elbe.", "And <|im_end|> ?", " Yes\n", system="Be brief."),
        build_tool_conversation(),
        build_plain_text("The Elbe is long."),
    ):
        assert tokenize_example(example, "s", template, light, 400) == tokenize_example(
            example, "s", template, tokenizer, 400
        )


CHAT_TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
}
SMALL_TEMPLATES = {
    "json": "{{ messages | tojson(indent=2, sort_keys=true) }}{{ tools | tojson }}{{ {'<': 'é'} | tojson }}",
    "loops": "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{% continue %}{% endfor %}x",
    "generation": "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "namespace": "{% set n = namespace(a=1) %}{% set n.a = dict(b=2) %}{{ n.a }}{{ dict.fromkeys('ab') }}",
    "private": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "sandbox": "{{ messages.__class__.__mro__ }}|{{ messages.append({}) }}",
    "refuses": "{{ raise_exception('no: ' + messages[0].role) }}",
    "undefined": "{{ nothing.at_all }}",
    "blocks": "  {% if true %}\n  a\n  {% endif %}\n{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ documents }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }}/{{ m.reasoning }};{% endfor %}",
}


@pytest.mark.parametrize("name", [*CHAT_TEMPLATES, *SMALL_TEMPLATES])
def test_chat_templates_render_the_same_text_or_refuse_alike(
    name, tokenizer, light_copy, conversations, calling, as_dicts, weather
):
    source = {**CHAT_TEMPLATES, **SMALL_TEMPLATES}[name]
    light = light_copy(tokenizer)
    cases = [(as_dicts(messages), None) for messages in conversations.values()]
    cases.append((as_dicts(calling), [{"type": "function", "function": weather}]))
    cases.append(
        (
            [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So.", "reasoning": "Hm.", "x": None},
            ],
            None,
        )
    )
    for messages, tools in cases:
        for prompt in (True, False):
            arguments = {"tools": tools, "chat_template": source, "tokenize": False, "add_generation_prompt": prompt}
            results = []
            for renderer in (light, tokenizer):
                try:
                    results.append(renderer.apply_chat_template(messages, **arguments, enable_thinking=False))
                except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
                    results.append(type(error))
            assert results[0] == results[1]


def test_a_template_is_chosen_as_in_transformers(tokenizer, light_copy, weather):
    named = copy.deepcopy(tokenizer)
    for templates in ({"default": "d", "tool_use": "t"}, {"default": "d"}, {"rag": "r"}, "one", None):
        named.chat_template = templates
        light = light_copy(named)
        for arguments in ({}, {"tools": [weather]}, {"chat_template": "rag"}, {"chat_template": "{{ x }}"}):
            try:
                expected = named.get_chat_template(**arguments)
            except ValueError:
                with pytest.raises(ValueError, match="no chat template"):
                    light.get_chat_template(**arguments)
            else:
                assert light.get_chat_template(**arguments) == expected


def test_an_attribute_that_it_lacks_is_that_of_the_full_tokenizer(tokenizer, tmp_path):
    loaded = []
    file = tmp_path / "snapshot.json"
    save_snapshot(tokenizer, file)
    light = load_snapshot(file, lambda: loaded.append(1) or tokenizer)
    assert light.eos_token == "</s>"
    assert loaded == []
    assert light.model_max_length == tokenizer.model_max_length
    assert light(["a", "b"])["input_ids"] == tokenizer(["a", "b"])["input_ids"]
    assert light.convert_tokens_to_ids("</s>") == light.eos_token_id
    with pytest.raises(AttributeError):
        _ = light.no_such_attribute
    assert loaded == [1]


def test_a_class_that_overrides_a_method_has_no_snapshot(tokenizer, tmp_path):
    class Reversed(transformers.PreTrainedTokenizerFast):
        def _decode(self, *arguments, **options):
            return super()._decode(*arguments, **options)[::-1]

    changed = Reversed(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    assert not save_snapshot(changed, tmp_path / "snapshot.json")
    assert not (tmp_path / "snapshot.json").exists()


def test_a_damaged_snapshot_is_not_read(tokenizer, tmp_path):
    file = tmp_path / "snapshot.json"
    save_snapshot(tokenizer, file)
    text = file.read_text(encoding="utf-8")
    for damaged in ("", "{}\n{}", text[: len(text) // 2], text.partition("\n")[2]):
        file.write_text(damaged, encoding="utf-8")
        assert load_snapshot(file, lambda: tokenizer) is None
