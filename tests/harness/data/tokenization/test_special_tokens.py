"""Control tokens in users' texts are text, with every kind of tokenizer, and nothing else changes."""

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
CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def bpe(pre_tokenizer, decoder, normalizer=None):
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        core.normalizer = normalizer
    core.train_from_iterator(CORPUS, BpeTrainer(vocab_size=160, special_tokens=CONTROL[:3], show_progress=False))
    document = json.loads(core.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    document["model"]["byte_fallback"] = True
    return wrapped(Tokenizer.from_str(json.dumps(document)))


def wrapped(core, **flags):
    core.add_special_tokens([AddedToken(text, special=True, normalized=False, **flags) for text in CONTROL[3:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def byte_level(**flags):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=420, special_tokens=CONTROL[:3], initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return wrapped(core, **flags)


def metaspace(scheme):
    return bpe(pre_tokenizers.Metaspace(prepend_scheme=scheme), decoders.Metaspace(prepend_scheme=scheme))


def legacy():
    # As the first conversions of Llama's tokenizer: the prefix is put before every stretch between special tokens.
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return bpe(None, decoder, normalizer)


def unigram():
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    core.train_from_iterator(
        CORPUS, UnigramTrainer(vocab_size=120, special_tokens=CONTROL[:3], unk_token="<unk>", show_progress=False)
    )
    return wrapped(core)


KINDS = {
    "byte_level": byte_level,
    "byte_level_rstrip": lambda: byte_level(rstrip=True),
    "byte_level_lstrip": lambda: byte_level(lstrip=True),
    "metaspace_first": lambda: metaspace("first"),
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_never": lambda: metaspace("never"),
    "legacy": legacy,
    "unigram": unigram,
}
BUILT = {name: build() for name, build in KINDS.items()}


def spans(user, answer, start="<|im_start|>"):
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


def apart(rendering, tokenizer):
    own = special_token_guard(tokenizer)
    ids, encoding = own.encode_with_escaped_specials(rendering, own.control_ids(rendering), "x")
    return ids, encoding.offsets


def own_tokens(rendering, tokenizer):
    return tokenizer(rendering.text, add_special_tokens=False, return_offsets_mapping=True)


harmless = st.text(
    st.one_of(st.sampled_from(list("abETh er is\n\t<|>/ _长江河🙂é")), st.characters(exclude_categories=["Cs"])),
    max_size=30,
).filter(lambda text: not any(token in text for token in CONTROL))
hostile = st.lists(st.one_of(harmless, st.sampled_from(CONTROL)), max_size=6).map("".join)
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("start", ["<|im_start|>", "<s>[INST] ", "Plain: "])
@many
@given(user=harmless, answer=harmless)
def test_without_control_tokens_both_ways_give_the_tokenizers_own_tokens(kind, start, user, answer):
    tokenizer, rendering = BUILT[kind], spans(user, answer, start)
    expected = own_tokens(rendering, tokenizer)
    for ids, offsets in (apart(rendering, tokenizer), *tokenize_with_offsets([rendering], tokenizer, ["x"])):
        assert list(ids) == expected["input_ids"]
        assert list(offsets) == expected["offset_mapping"]


@pytest.mark.parametrize("kind", sorted(KINDS))
@many
@given(user=hostile, answer=hostile)
def test_control_tokens_stand_in_frames_alone(kind, user, answer):
    tokenizer, rendering = BUILT[kind], spans(user, answer)
    ((ids, offsets),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    control = {tokenizer.convert_tokens_to_ids(text): text for text in CONTROL[1:]}
    places = [offset for token, offset in zip(ids, offsets, strict=True) if token in control]
    written = [control[token] for token in ids if token in control]
    assert written == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    for begin, end in places:
        begin, end = (
            begin + (rendering.text[begin:end].find("<|im_")),
            begin + len(rendering.text[begin:end].rstrip()),
        )
        assert any(first <= begin and end <= last for first, last in rendering.markup_spans)


@pytest.mark.parametrize("kind", ["byte_level", "legacy"])
@many
@given(user=hostile, answer=hostile)
def test_a_users_control_tokens_are_decoded_as_they_were_written(kind, user, answer):
    tokenizer, rendering = BUILT[kind], spans(user, answer)
    ((ids, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    expected = rendering.text
    if kind == "legacy":  # decoding shows the prefixes: one before each stretch between control tokens
        text, expected = text.replace(" ", ""), expected.replace(" ", "").replace("▁", "")
    assert text == expected


def test_turning_special_tokens_off_would_not_do():
    tokenizer, rendering = BUILT["byte_level"], spans("q", "a")
    off = tokenizer(rendering.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in off


def test_tokenising_stretch_by_stretch_would_not_do():
    tokenizer = BUILT["metaspace_first"]
    ((whole, _),) = tokenize_with_offsets([spans("The Elbe", "a river")], tokenizer, ["x"])
    stretch = tokenizer("The Elbe", add_special_tokens=False)["input_ids"]
    assert not any(list(whole[i : i + len(stretch)]) == stretch for i in range(len(whole)))


def test_truncation_left_on_by_another_call_does_not_cut():
    tokenizer, rendering = byte_level(), spans("The Elbe is a river.", "Yes.")
    ((expected, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    tokenizer("a b c", truncation=True, max_length=2, split_special_tokens=True)
    ((ids, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    assert ids == expected


def test_an_added_token_counts_as_control_where_the_template_writes_it():
    tokenizer = byte_level()
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


def test_an_unknown_character_is_not_taken_for_a_control_token():
    tokenizer = BUILT["unigram"]
    for rendering in (spans("☃", "☃"), spans("☃ <|im_end|>", "☃"), spans("☃ <unk>", "☃")):
        ((ids, offsets),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
        unknown = [offset for token, offset in zip(ids, offsets, strict=True) if token == tokenizer.unk_token_id]
        assert sum(rendering.text[begin:end].count("☃") for begin, end in unknown) == 2


def test_the_token_for_the_unknown_is_text_where_a_user_writes_it():
    ((ids, _),) = tokenize_with_offsets([spans("<unk>", "a")], BUILT["byte_level"], ["x"])
    assert BUILT["byte_level"].unk_token_id not in ids


def test_private_use_characters_of_a_text_are_not_taken_for_control_tokens():
    tokenizer = BUILT["byte_level"]
    rendering = spans("".join(chr(0xF0000 + number) * 10 for number in range(8)) + "<|im_end|>", "a")
    ((ids, _),) = tokenize_with_offsets([rendering], tokenizer, ["x"])
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == rendering.text


def test_a_text_that_leaves_no_private_characters_is_refused():
    rendering = spans("<|im_end|>" + "".join(map(chr, (0xF0000, 0x100000, 0xF8000, 0x108000))), "a")
    with pytest.raises(HarnessError, match=r"rows.jsonl:3: .*private-use") as error:
        tokenize_with_offsets([rendering], BUILT["byte_level"], ["rows.jsonl:3"])
    assert error.value.where == "rows.jsonl:3"


def test_a_tokenizer_that_is_not_fast_is_refused():
    with pytest.raises(HarnessError, match="not a fast one"):
        SpecialTokenGuard(type("Slow", (), {"is_fast": False})())


def test_tokens_added_later_are_seen():
    tokenizer = byte_level()
    before = special_token_guard(tokenizer)
    assert special_token_guard(tokenizer) is before
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    ((ids, _),) = tokenize_with_offsets([spans("<new>", "a")], tokenizer, ["x"])
    assert tokenizer.convert_tokens_to_ids("<new>") not in ids


def test_a_rendering_joins_stretches_that_touch():
    found = Rendering.from_spans(
        [Span("ab", markup=True), Span(""), Span("c", markup=True), Span("d"), Span("e", True), Span("f", True, True)]
    )
    assert (found.text, found.markup_spans, found.trained_spans) == ("abcdef", ((0, 3), (5, 6)), ((4, 6),))
    assert found.untrained_markup == ("ab", "c")
