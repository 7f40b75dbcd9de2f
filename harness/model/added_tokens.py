"""Tokens that a spec adds to a model: its tokenizer and its embeddings grow, new rows start as the mean of the others.

A tokenizer can also be larger than the embeddings of its model, often by a padding token. The spec covers such tokens
by naming them; a padding token without a row is replaced, since padding is masked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.utils.formatting import join_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS = ("add_tokens", "add_special_tokens", "pad_token")
"""The keys of the spec's `model` that add tokens."""

ADDED_ROWS_ATTRIBUTE = "harness_added_rows"
"""Attribute of a loaded model: the ids of its new embedding rows, in order."""


@dataclass(frozen=True)
class AddedTokens:
    """The tokens of a spec.

    Attributes:
        tokens: Ordinary tokens.
        special_tokens: Control tokens: in messages they are plain text, see `special_tokens`.
        pad_token: The padding token; None: the tokenizer's.
    """

    tokens: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ()
    pad_token: str | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> AddedTokens:
        """Return the tokens that the spec's `model` names."""
        ordinary, special, pad_token = (settings.get(key) for key in SETTINGS)
        return cls(tuple(ordinary or ()), tuple(special or ()), pad_token)

    def __bool__(self) -> bool:
        return bool(self.names())

    def names(self) -> tuple[str, ...]:
        """Return all tokens, each once."""
        pad_tokens = () if self.pad_token is None else (self.pad_token,)
        return tuple(dict.fromkeys([*self.tokens, *self.special_tokens, *pad_tokens]))

    def digest_with(self, model_digest: str) -> str:
        """Return the digest of the model with these tokens; that of the model if there are none."""
        if not self:
            return model_digest
        text = json.dumps([self.tokens, self.special_tokens, self.pad_token])
        tokens_digest = hashlib.sha256(text.encode()).hexdigest()
        if model_digest.startswith("hub:"):
            return f"{model_digest}+{tokens_digest[:16]}"
        return hashlib.sha256((model_digest + tokens_digest).encode()).hexdigest()


NO_TOKENS = AddedTokens()
"""The tokens of a spec that adds none."""


def joined_settings(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys `SETTINGS` with the tokens of an earlier and a later spec's `model`, in this order."""
    first, second = AddedTokens.from_settings(earlier), AddedTokens.from_settings(later)
    return {
        "add_tokens": list(dict.fromkeys([*first.tokens, *second.tokens])),
        "add_special_tokens": list(dict.fromkeys([*first.special_tokens, *second.special_tokens])),
        "pad_token": second.pad_token if first.pad_token is None else first.pad_token,
    }


def add_to_tokenizer(tokenizer: PreTrainedTokenizerBase, added: AddedTokens) -> list[int]:
    """Add the tokens that the tokenizer lacks, set its padding token, and return the ids of the new tokens."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    pad_tokens = () if added.pad_token is None else (added.pad_token,)
    for tokens, special in ((added.tokens, False), ((*added.special_tokens, *pad_tokens), True)):
        missing = [AddedToken(text, normalized=False, special=special) for text in tokens if text not in known]
        tokenizer.add_tokens(missing, special_tokens=special)
    if added.pad_token is not None:
        tokenizer.pad_token = added.pad_token
    return sorted(index for text, index in tokenizer.get_vocab().items() if text not in known)


def choose_pad_token(
    tokenizer: PreTrainedTokenizerBase, embedding_rows: int | None, added: AddedTokens, path: str
) -> None:
    """Give the tokenizer a padding token that has an embedding row: its own, else another control token.

    Args:
        tokenizer: The tokenizer, with the added tokens.
        embedding_rows: Number of rows in the model's files; None if unknown.
        added: The added tokens; with any, the embeddings get a row for every token of the tokenizer.
        path: The model, for the error.

    Raises:
        HarnessError: The tokenizer has no control token with a row.
    """

    def has_row(index: int | None) -> bool:
        return index is not None and (bool(added) or embedding_rows is None or index < embedding_rows)

    if has_row(tokenizer.pad_token_id):
        return
    for name in ("eos_token", "unk_token", "bos_token") if tokenizer.pad_token_id is not None else ("eos_token",):
        if has_row(getattr(tokenizer, f"{name}_id")):
            tokenizer.pad_token = getattr(tokenizer, name)
            return
    what = f"the tokenizer of '{path}' has neither a pad nor an end-of-sequence token"
    if tokenizer.pad_token_id is not None:
        what = f"the pad token of '{path}' and its other control tokens have no embedding row"
    raise HarnessError("model.path", what, 'name one: "model": {"pad_token": "<|pad|>"}')


def replaced_pad_token(tokenizer: PreTrainedTokenizerBase, added: AddedTokens) -> str | None:
    """Return a warning if the published padding token was replaced by `choose_pad_token`, else None."""
    published = tokenizer.init_kwargs.get("pad_token")
    if published is None or added.pad_token is not None or str(published) == str(tokenizer.pad_token):
        return None
    return (
        f"the model has no embedding row for the padding token {str(published)!r} of its tokenizer; "
        f"{str(tokenizer.pad_token)!r} is used for padding, which is masked"
    )


def grow_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_ids: Sequence[int]
) -> tuple[int, ...]:
    """Give every token of the tokenizer a row in the embeddings and the output head, in place.

    New rows are the mean of the rows of the model's files (Hewitt, 2021, "Initializing new word embeddings for
    pretrained language models"). Tied weights stay tied.

    Args:
        model: The model as loaded.
        tokenizer: The tokenizer with its added tokens.
        new_ids: The ids of the added tokens; some may have an unused row already.

    Returns:
        The ids of the new rows, in order.

    Raises:
        HarnessError: The embeddings are quantized.
    """
    import torch

    embedding, head = _embedding_layers(model)
    rows = embedding.weight.shape[0]
    size = max(rows, max(tokenizer.get_vocab().values()) + 1)
    ids = sorted({*new_ids, *range(rows, size)})
    if not ids:
        return ()
    if any(layer is not None and layer.weight.dtype.itemsize < 2 for layer in (embedding, head)):
        what = f"quantized embeddings do not grow, and {join_names(_texts(tokenizer, ids[:3]))} is new"
        raise HarnessError("model.add_tokens", what, "give the model without quantization")
    old_ids = torch.tensor(sorted(set(range(rows)) - set(ids)), device=embedding.weight.device)
    layers = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    parameters = [layer.weight for layer in layers]
    if head is not None and getattr(head, "bias", None) is not None:
        parameters.append(head.bias)
    means = [parameter.detach()[old_ids].double().mean(0) for parameter in parameters]
    if size > rows:
        with torch.random.fork_rng():  # transformers draws initial values, which are replaced
            model.resize_token_embeddings(size, mean_resizing=False)
    embedding, head = _embedding_layers(model)
    parameters = [layer.weight for layer in ([embedding] if len(layers) == 1 else [embedding, head])]
    if head is not None and getattr(head, "bias", None) is not None:
        parameters.append(head.bias)
    with torch.no_grad():
        for parameter, mean in zip(parameters, means, strict=True):
            parameter[ids] = mean.to(parameter)
    return tuple(ids)


def _embedding_layers(model: PreTrainedModel) -> tuple[Any, Any]:
    """Return the input embedding and the output head; None for a missing head."""
    embedding: Any = model.get_input_embeddings()
    return embedding, model.get_output_embeddings()


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    return [repr(tokenizer.convert_ids_to_tokens(index)) for index in ids]
