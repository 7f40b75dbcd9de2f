"""A byte-level tokenizer, a tiny causal language model and a tiny encoder, all built in code within a second."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of the tokenizer, in Jinja."""


def build_tokenizer(
    special_tokens: Sequence[str] = ("<|im_start|>", "<|im_end|>"), chat_template: str = CHATML
) -> PreTrainedTokenizerBase:
    """Return a tokenizer without merges: one token per byte, and special tokens.

    Args:
        special_tokens: Those besides `<pad>`, `<s>` and `</s>`.
        chat_template: A chat template in Jinja.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special_tokens = tuple(dict.fromkeys(special_tokens))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<s>", "</s>", *special_tokens, *alphabet]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(special_tokens),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def build_tiny_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> LlamaConfig:
    """Return the configuration of a two-layer Llama with about 30,000 weights and the vocabulary of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        changes: Other values of the configuration, e.g. `hidden_size=16`.
    """
    from transformers import LlamaConfig

    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlamaConfig(**{**values, **changes})


def build_tiny_model(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> LlamaForCausalLM:
    """Return a random model of `build_tiny_config` in float32. The weights are the same in every call.

    Global random state is left as it is.
    """
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(build_tiny_config(tokenizer, **changes))


def write_tiny_encoder(folder: Path) -> Path:
    """Write a random two-layer BERT whose vocabulary is letters, with its tokenizer.

    Returns:
        The folder.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder)
    return folder
