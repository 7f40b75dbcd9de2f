"""Tokenizers of every type, templates that use every flag, and conversations of every shape, all built in code."""

from __future__ import annotations

import importlib
import json

from harness_templates import harness_templates
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from harness import Example, HarnessError, Message, Span, Template
from harness.types import ToolCall

TEXTS = [
    "The Elbe is a river in the north; it is long.",
    "user assistant system tool",
    "Name a river: 12345 metres, I'm sure. Yes.\n\n",
    "长江 是 一 条 河 9876543210",
    " ".join("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?0123456789.,:;<>|_{}/\"'?"),
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?0123456789.,:;<>|_{}/\"'?",
] * 20
CONTROL_TOKENS = ["<pad>", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def wrap_tokenizer(core, *, begins=False):
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL_TOKENS[4:]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    if begins:
        first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = first
    return tokenizer


def build_byte_level(normalizer=None, split=None, **flags):
    core = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    core.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([split, level])
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=420, special_tokens=CONTROL_TOKENS[:4], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return wrap_tokenizer(core, **flags)


def build_bpe(pre_tokenizer, decoder, normalizer=None, **flags):
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        core.normalizer = normalizer
    core.train_from_iterator(TEXTS, BpeTrainer(vocab_size=160, special_tokens=CONTROL_TOKENS[:4], show_progress=False))
    state = json.loads(core.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    state["model"]["byte_fallback"] = True
    return wrap_tokenizer(Tokenizer.from_str(json.dumps(state)), **flags)


def build_metaspace(scheme):
    return build_bpe(pre_tokenizers.Metaspace(prepend_scheme=scheme), decoders.Metaspace(prepend_scheme=scheme))


def build_legacy():
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return build_bpe(None, decoder, normalizer, begins=True)


def build_unigram():
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    trainer = UnigramTrainer(vocab_size=120, special_tokens=CONTROL_TOKENS[:4], unk_token="<unk>", show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    return wrap_tokenizer(core)


def build_wordpiece():
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    core.train_from_iterator(
        TEXTS, WordPieceTrainer(vocab_size=300, special_tokens=CONTROL_TOKENS[:4], show_progress=False)
    )
    return wrap_tokenizer(core)


TOKENIZER_FACTORIES = {
    "byte_level": build_byte_level,
    "byte_level_begins": lambda: build_byte_level(begins=True),
    "byte_level_nfc": lambda: build_byte_level(normalizers.NFC()),
    "byte_level_split": lambda: build_byte_level(
        split=pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), behavior="isolated")
    ),
    "metaspace_first": lambda: build_metaspace("first"),
    "metaspace_always": lambda: build_metaspace("always"),
    "legacy": build_legacy,
    "unigram": build_unigram,
    "wordpiece": build_wordpiece,
}
TOKENIZERS = {name: build() for name, build in TOKENIZER_FACTORIES.items()}


def create_template(name, **options):
    """Return a built-in template with its default options, except those given."""
    component = harness_templates()[name]
    module, _, attribute = component.factory.partition(":")
    defaults = {key: schema["default"] for key, schema in component.options.items()}
    return getattr(importlib.import_module(module), attribute)(**{**defaults, **options})


def message_text(message):
    calls = "".join(f'\n{{"name": "{call.name}"}}' for call in message.tool_calls)
    return message.content + (f"\n\n{message.input}" if message.input else "") + calls


class Turns(Template):
    """ChatML with tools, calls and `train`. Its option is for tests of the cache."""

    name = "turns"

    def __init__(self, option=None):
        self.option = option

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = [Span(f"<|im_start|>tools\n{len(tools)}<|im_end|>\n", markup=True)] if tools else []
        for message in messages:
            trained = message.role == "assistant" and message.train
            spans += [
                Span(f"<|im_start|>{message.role}\n", markup=True),
                Span(message_text(message), trained),
                Span("<|im_end|>", trained, markup=True),
                Span("\n", markup=True),
            ]
        return (*spans, *([Span("<|im_start|>assistant\n", markup=True)] if add_generation_prompt else []))

    def stop_strings(self, tokenizer):
        return ("<|im_end|>",)


class Speakers(Template):
    """Speakers' names before each turn, one control token at the end, and no `tools` parameter."""

    name = "speakers"

    def render(self, messages, tokenizer, *, add_generation_prompt=False):
        spans = []
        for message in messages:
            if message.role == "tool":
                raise HarnessError("template speakers", "the format does not support tools")
            trained = message.role == "assistant" and message.train
            spans += [Span(f"{message.role.upper()}:\n", markup=True), Span(message_text(message), trained)]
            spans.append(Span("</s>" if message.role == "assistant" else "\n", trained, markup=True))
        return (*spans, *([Span("ASSISTANT:\n", markup=True)] if add_generation_prompt else []))

    def stop_strings(self, tokenizer):
        return ("</s>",)


def build_conversation(*contents, number=1, system=None, untrained=(), tools=()):
    """Return a conversation of these contents. untrained: indices of the contents whose messages are not trained."""
    messages = [
        Message(("user", "assistant")[i % 2], content, train=i not in untrained) for i, content in enumerate(contents)
    ]
    messages = [Message("system", system)] * (system is not None) + messages
    return Example(f"{number:016x}", tuple(messages), f"rows.jsonl:{number}", tools)


def build_tool_conversation(number=1):
    """Return a conversation with a tool call."""
    call = Message("assistant", "", tool_calls=(ToolCall("depth", {"river": "Elbe"}),))
    messages = (Message("user", "How deep?"), call, Message("tool", "3 m", name="depth"), Message("assistant", "3 m."))
    return Example(f"{number:016x}", messages, f"rows.jsonl:{number}", ({"name": "depth"},))


def build_plain_text(text, number=1):
    """Return a plain text."""
    return Example(f"{number:016x}", (Message("text", text),), f"texts.jsonl:{number}")


pieces = st.one_of(
    st.sampled_from(list("abETh er is\n\t<|>/ _1234")),
    st.sampled_from(["长江", "河", "🙂", "👩‍👩‍👧", "é", "e\u0301", "ﬁ", "\u00a0", "  ", "\n\n", "The Elbe", "I'm"]),
    st.characters(exclude_categories=["Cs", "Co"]),
)
harmless_texts = (
    st.lists(pieces, max_size=20).map("".join).filter(lambda text: not any(token in text for token in CONTROL_TOKENS))
)
hostile_texts = st.lists(st.one_of(pieces, st.sampled_from(CONTROL_TOKENS[1:])), max_size=12).map("".join)


@st.composite
def conversations(draw, texts=harmless_texts):
    """Draw a conversation of up to three turns, in which at least the last response is trained."""
    non_blank_texts = texts.filter(lambda text: text.strip())
    contents = []
    for _ in range(draw(st.integers(1, 3))):
        contents += [draw(non_blank_texts), draw(non_blank_texts)]
    untrained = draw(st.sets(st.sampled_from(range(1, len(contents) - 1, 2)))) if len(contents) > 2 else ()
    system = draw(st.one_of(st.none(), non_blank_texts))
    return build_conversation(*contents, number=draw(st.integers(1, 10**9)), system=system, untrained=untrained)
