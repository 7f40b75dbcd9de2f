"""Control tokens in messages are plain text, for every type of tokenizer, and nothing else changes."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import PreTrainedTokenizerFast

from harness import HarnessError, Span
from harness.data.tokenization.rendering import Rendering
from harness.data.tokenization.special_tokens import SpecialTokenGuard, special_token_guard, tokenize_with_offsets

CORPUS = ["The Elbe is a river in the north; it is long.", "user assistant system", "长江 是 一 条 河"] * 20
CONTROL_TOKENS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def build_bpe(pre_tokenizer, decoder, normalizer=None):
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        core.normalizer = normalizer
    core.train_from_iterator(CORPUS, BpeTrainer(vocab_size=160, special_tokens=CONTROL_TOKENS[:3], show_progress=False))
    state = json.loads(core.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    state["model"]["byte_fallback"] = True
    return wrap_tokenizer(Tokenizer.from_str(json.dumps(state)))


def wrap_tokenizer(core, **flags):
    core.add_special_tokens([AddedToken(text, special=True, normalized=False, **flags) for text in CONTROL_TOKENS[3:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def build_byte_level(**flags):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=420, special_tokens=CONTROL_TOKENS[:3], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return wrap_tokenizer(core, **flags)


def build_metaspace(scheme):
    return build_bpe(pre_tokenizers.Metaspace(prepend_scheme=scheme), decoders.Metaspace(prepend_scheme=scheme))


def build_legacy():
    # As the first conversions of Llama's tokenizer: every text between special tokens gets a prefix.
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return build_bpe(None, decoder, normalizer)


def build_unigram():
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    core.train_from_iterator(
        CORPUS,
        UnigramTrainer(vocab_size=120, special_tokens=CONTROL_TOKENS[:3], unk_token="<unk>", show_progress=False),
    )
    return wrap_tokenizer(core)


TOKENIZER_FACTORIES = {
    "byte_level": build_byte_level,
    "byte_level_rstrip": lambda: build_byte_level(rstrip=True),
    "byte_level_lstrip": lambda: build_byte_level(lstrip=True),
    "metaspace_first": lambda: build_metaspace("first"),
    "metaspace_always": lambda: build_metaspace("always"),
    "metaspace_never": lambda: build_metaspace("never"),
    "legacy": build_legacy,
    "unigram": build_unigram,
}
TOKENIZERS = {name: build() for name, build in TOKENIZER_FACTORIES.items()}


def render_turn(user, answer, start="<|im_start|>"):
    return Rendering.from_spans(
        [
            Span(f"{start}user\n", markup=True),
            Span(user),
            Span("<|im_end|>\n<|im_start|>assistant\n", markup=True),
            Span(answer, train=True),
            Span("<|im_end|>", train=True, markup=True),
            Span("\n", markup=True),
        ]
    )


def encode_escaped(rendering, tokenizer):
    guard = special_token_guard(tokenizer)
    ids, encoding = guard.encode_with_escaped_specials(rendering, guard.control_ids(rendering), "x")
    return ids, encoding.offsets


def encode_with_tokenizer(rendering, tokenizer):
    return tokenizer(rendering.text, add_special_tokens=False, return_offsets_mapping=True)


harmless_texts = st.text(
    st.one_of(st.sampled_from(list("abETh er is\n\t<|>/ _长江河🙂é")), st.characters(exclude_categories=["Cs"])),
    max_size=30,
).filter(lambda text: not any(token in text for token in CONTROL_TOKENS))
hostile_texts = st.lists(st.one_of(harmless_texts, st.sampled_from(CONTROL_TOKENS)), max_size=6).map("".join)
hypothesis_settings = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("tokenizer_name", sorted(TOKENIZER_FACTORIES))
@pytest.mark.parametrize("start", ["<|im_start|>", "<s>[INST] ", "Plain: "])
@hypothesis_settings
@given(user=harmless_texts, answer=harmless_texts)
def test_both_encodings_equal_the_tokenizer_without_control_tokens(tokenizer_name, start, user, answer):
    tokenizer, rendering = TOKENIZERS[tokenizer_name], render_turn(user, answer, start)
    expected = encode_with_tokenizer(rendering, tokenizer)
    for ids, offsets in (encode_escaped(rendering, tokenizer), *tokenize_with_offsets([rendering], tokenizer, ["x"])):
        assert list(ids) == expected["input_ids"]
        assert list(offsets) == expected["offset_mapping"]


@pytest.mark.parametrize("tokenizer_name", sorted(TOKENIZER_FACTORIES))
@hypothesis_settings
@given(user=hostile_texts, answer=hostile_texts)
def test_control_tokens_are_in_markup_only(tokenizer_name, user, answer):
    tokenizer, rendering = TOKENIZERS[tokenizer_name], render_turn(user, answer)
    ((ids, offsets),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    control = {tokenizer.convert_tokens_to_ids(text): text for text in CONTROL_TOKENS[1:]}
    places = [offset for token, offset in zip(ids, offsets, strict=True) if token in control]
    written = [control[token] for token in ids if token in control]
    assert written == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    for begin, end in places:
        begin, end = (
            begin + (rendering.text[begin:end].find("<|im_")),
            begin + len(rendering.text[begin:end].rstrip()),
        )
        assert any(first <= begin and end <= last for first, last in rendering.markup_spans)


@pytest.mark.parametrize("tokenizer_name", ["byte_level", "legacy"])
@hypothesis_settings
@given(user=hostile_texts, answer=hostile_texts)
def test_control_tokens_in_messages_decode_to_their_text(tokenizer_name, user, answer):
    tokenizer, rendering = TOKENIZERS[tokenizer_name], render_turn(user, answer)
    ((ids, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    expected = rendering.text
    if tokenizer_name == "legacy":  # decoding shows the prefix of each text between control tokens
        text, expected = text.replace(" ", ""), expected.replace(" ", "").replace("▁", "")
    assert text == expected


def test_split_special_tokens_would_remove_the_templates_tokens():
    tokenizer, rendering = TOKENIZERS["byte_level"], render_turn("q", "a")
    off = tokenizer(rendering.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in off


def test_tokenizing_span_by_span_would_change_tokens():
    tokenizer = TOKENIZERS["metaspace_first"]
    ((whole, _),) = tokenize_with_offsets([render_turn("The Elbe", "a river")], tokenizer, ["x"])
    stretch = tokenizer("The Elbe", add_special_tokens=False)["input_ids"]
    assert not any(list(whole[i : i + len(stretch)]) == stretch for i in range(len(whole)))


def test_truncation_left_on_by_another_call_has_no_effect():
    tokenizer, rendering = build_byte_level(), render_turn("The Elbe is a river.", "Yes.")
    ((expected, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    tokenizer("a b c", truncation=True, max_length=2, split_special_tokens=True)
    ((ids, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    assert ids == expected


def test_added_token_is_control_where_the_template_writes_it():
    tokenizer = build_byte_level()
    tokenizer.add_tokens(["<turn>", "<think>"])
    turn, think = tokenizer.convert_tokens_to_ids(["<turn>", "<think>"])
    rendering = Rendering.from_spans(
        [
            Span("<turn>", markup=True),
            Span("a<turn>b<think>c"),
            Span("<turn>", markup=True),
            Span("<think>d", train=True),
        ]
    )
    ((ids, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    assert (ids.count(turn), ids.count(think)) == (2, 2)
    assert tokenizer.decode(ids) == rendering.text


def test_unknown_character_is_not_a_control_token():
    tokenizer = TOKENIZERS["unigram"]
    for rendering in (render_turn("☃", "☃"), render_turn("☃ <|im_end|>", "☃"), render_turn("☃ <unk>", "☃")):
        ((ids, offsets),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
        unknown = [offset for token, offset in zip(ids, offsets, strict=True) if token == tokenizer.unk_token_id]
        assert sum(rendering.text[begin:end].count("☃") for begin, end in unknown) == 2


def test_unknown_token_in_a_message_is_text():
    ((ids, _),) = tokenize_with_offsets([render_turn("<unk>", "a")], TOKENIZERS["byte_level"], ["x"])
    assert TOKENIZERS["byte_level"].unk_token_id not in ids


def test_private_use_characters_in_a_message_are_not_control_tokens():
    tokenizer = TOKENIZERS["byte_level"]
    rendering = render_turn("".join(chr(0xF0000 + number) * 10 for number in range(8)) + "<|im_end|>", "a")
    ((ids, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == rendering.text


def test_text_that_uses_every_private_use_range_is_refused():
    rendering = render_turn("<|im_end|>" + "".join(map(chr, (0xF0000, 0x100000, 0xF8000, 0x108000))), "a")
    with pytest.raises(HarnessError, match=r"rows.jsonl:3: .*private-use") as error:
        tokenize_with_offsets([rendering], TOKENIZERS["byte_level"], ["rows.jsonl:3"])
    assert error.value.where == "rows.jsonl:3"


def test_slow_tokenizer_is_refused():
    with pytest.raises(HarnessError, match="not a fast one"):
        SpecialTokenGuard(type("Slow", (), {"is_fast": False})())


def test_tokens_added_later_are_control_tokens():
    tokenizer = build_byte_level()
    before = special_token_guard(tokenizer)
    assert special_token_guard(tokenizer) is before
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    ((ids, _),) = tokenize_with_offsets([render_turn("<new>", "a")], tokenizer, ["x"])
    assert tokenizer.convert_tokens_to_ids("<new>") not in ids


def test_rendering_merges_adjacent_spans():
    rendering = Rendering.from_spans(
        [Span("ab", markup=True), Span(""), Span("c", markup=True), Span("d"), Span("e", True), Span("f", True, True)]
    )
    assert (rendering.text, rendering.markup_spans, rendering.trained_spans) == ("abcdef", ((0, 3), (5, 6)), ((4, 6),))
    assert rendering.untrained_markup == ("ab", "c")
