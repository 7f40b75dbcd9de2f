"""Tokenizers built in code like those of the model families: special tokens, type, and who adds the BOS token.

Each is a byte-pair model trained on the few sentences of these tests, so that it joins words, and joins across spaces
and line breaks, like real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TEXTS = [
    "Name a river. The Elbe. Sum up. A long story. A story. Be brief. 再说一条河。长江 🙂",
    "A chat between a curious user and an artificial intelligence assistant. USER: Hello! ASSISTANT: Hello!",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\nYou may call one or more",
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nsystem\n\nuser\n\nassistant\n\nmodel\n",
    '{"type": "function", "function": {"name": "get_weather", "description": "The weather in a city."}}',
    "### Instruction:\nName\n\n### Response:\nThe [INST] <<SYS>>\n [/INST] <|user|>\n<|assistant|>\n",
] * 4


@dataclass(frozen=True)
class Family:
    """A tokenizer to build.

    Attributes:
        kind: `bytes` (byte-level), `piece` (SentencePiece, a space before a text, like Llama 2's) or `bare`
            (SentencePiece without that space, like Gemma's).
        plain: Added tokens that are not special.
        strips: Tokens that include the white space after them.
        begins: Whether the tokenizer adds the BOS token.
    """

    kind: str
    bos: str | None
    eos: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    begins: bool = False
    unknown: str | None = field(default=None)


MISTRAL = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
MISTRAL += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]")
DEEPSEEK_TOOLS = tuple(
    f"<｜tool▁{word}｜>"
    for word in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep", "outputs▁begin", "outputs▁end")
)
DEEPSEEK_TOOLS += ("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")

FAMILIES = {
    "llama3": Family(
        "bytes",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        begins=True,
    ),
    "qwen": Family(
        "bytes",
        None,
        "<|endoftext|>",
        ("<|im_start|>", "<|im_end|>"),
        plain=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
    ),
    "gemma": Family(
        "bare",
        "<bos>",
        "<eos>",
        ("<start_of_turn>", "<end_of_turn>"),
        plain=("\n", "\n\n"),
        begins=True,
        unknown="<unk>",
    ),
    "phi": Family(
        "piece",
        "<s>",
        "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        strips=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        unknown="<unk>",
    ),
    "deepseek": Family(
        "bytes",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        (),
        plain=("<｜User｜>", "<｜Assistant｜>", *DEEPSEEK_TOOLS),
        begins=True,
    ),
    "mistral": Family("piece", "<s>", "</s>", MISTRAL, begins=True, unknown="<unk>"),
    "tekken": Family("bytes", "<s>", "</s>", MISTRAL, begins=True),
    "llama2": Family("piece", "<s>", "</s>", (), begins=True, unknown="<unk>"),
}


def make(family: Family):
    """Return the tokenizer of a family, as a fast tokenizer of transformers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    if family.kind == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.train_from_iterator(
            TEXTS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
        )
        core.decoder = decoders.ByteLevel()
    else:
        core = _piece(Tokenizer, models, pre_tokenizers, trainers)
        steps = [normalizers.Prepend("▁")] if family.kind == "piece" else []
        core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        core.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if family.kind == "piece" else [])])
    special = [token for token in (family.unknown, family.bos, family.eos, *family.special) if token]
    core.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=token in family.strips) for token in special]
    )
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain])
    if family.begins:
        ids = [(family.bos, core.token_to_id(family.bos))]
        core.post_processor = TemplateProcessing(single=f"{family.bos} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.bos,
        eos_token=family.eos,
        unk_token=family.unknown,
        clean_up_tokenization_spaces=False,
    )


def _piece(tokenizer, models, pre_tokenizers, trainers):
    """Return a byte-pair model over pieces with byte fallback, like SentencePiece's."""
    import json

    learning = tokenizer(models.BPE())
    # In these tokenizers a line break is a separate piece, or a byte.
    lines = pre_tokenizers.Split("\n", "removed")
    learning.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="never")])
    learning.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    learned = json.loads(learning.to_str())["model"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(pair) for pair in learned["merges"]]
    return tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
