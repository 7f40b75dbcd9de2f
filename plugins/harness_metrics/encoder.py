"""Token embeddings by an encoder of transformers, loaded from a folder.

Nothing is downloaded, and no code of the folder is executed. Loading restores torch's random state, so that a metric
within a run does not change the training after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from harness import HarnessError
from harness.model.device import select_device
from harness.utils import file_digests
from harness.utils.silence import silence_libraries

_HINT_ENCODER_FOLDER = "name the folder of an encoder as transformers saves it, with its tokenizer"


@dataclass(frozen=True)
class TokenEmbeddings:
    """The embeddings of one text.

    Attributes:
        vectors: (T, H), of unit length, float64, special tokens included.
        is_text_token: (T,), False for tokens that mark begin or end of the text.
    """

    vectors: torch.Tensor
    is_text_token: torch.Tensor


def resolve_layer(folder: Path, layer: int | None, where: str) -> int:
    """Return the layer whose output is compared. Loads no weights.

    Args:
        folder: The encoder's folder.
        layer: The layer, 0 for the embeddings; None: three quarters up.
        where: The metric's key in the spec, for errors.

    Raises:
        HarnessError: The folder is not that of an encoder, or it has no such layer.
    """
    model_option = f"{where}.model"
    if not (folder / "config.json").is_file():
        what = f"{folder} is not a folder of a model: it has no config.json"
        raise HarnessError(model_option, what, _HINT_ENCODER_FOLDER)
    if not file_digests.weight_files(folder):
        what = f"{folder} has no weights (*.safetensors or pytorch_model*.bin)"
        raise HarnessError(model_option, what, _HINT_ENCODER_FOLDER)
    config = _load_config(folder, model_option)
    if config.is_encoder_decoder:
        what = f"{folder} is a {config.model_type}, an encoder with a decoder"
        raise HarnessError(model_option, what, "name an encoder alone, such as BERT or XLM-RoBERTa")
    layer_count = getattr(config, "num_hidden_layers", None)
    if not isinstance(layer_count, int):
        what = f"{folder} is a {config.model_type}, which is not an encoder of text"
        raise HarnessError(model_option, what, _HINT_ENCODER_FOLDER)
    if layer is not None and layer > layer_count:
        what = f"is {layer}, but the encoder has {layer_count} layers"
        raise HarnessError(f"{where}.layer", what, f"set it to at most {layer_count}")
    return int(layer_count * 0.75 + 0.5) if layer is None else layer


class TextEncoder:
    """A loaded encoder, in float32."""

    def __init__(self, folder: Path, layer: int, *, on_cpu: bool, where: str) -> None:
        """Load tokenizer and weights.

        Args:
            folder: The encoder's folder.
            layer: The layer whose output is returned, see `resolve_layer`.
            on_cpu: Use the CPU even if there is a CUDA device.
            where: The option in the spec, for errors.

        Raises:
            HarnessError: Tokenizer or weights do not load, or some of the weights are missing.
        """
        self._layer = layer
        self._device = torch.device("cpu") if on_cpu else select_device()
        with torch.random.fork_rng(devices=[]), silence_libraries():  # a missing pooler is initialized at random
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                model, info = AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
            except Exception as error:  # transformers raises errors of any type for a bad folder
                raise HarnessError(where, f"{folder} does not load: {error}", _HINT_ENCODER_FOLDER) from error
        missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
        if missing:
            what = f"{folder} lacks {len(missing)} of the weights of its encoder, first {missing[0]}"
            raise HarnessError(where, what, "name the folder of a complete checkpoint")
        self._model: Any = model.to(self._device).eval()
        self._window = min(self._tokenizer.model_max_length, _max_positions(self._model))
        self._boundary_tokens = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id} - {None}

    @torch.no_grad()
    def __call__(self, text: str) -> TokenEmbeddings:
        """Return the embeddings of one text, encoded alone: no padding or other text can change them."""
        token_ids = self._token_ids(text, max_length=self._window, truncation=True)
        is_text_token = torch.tensor([token not in self._boundary_tokens for token in token_ids], dtype=torch.bool)
        if not token_ids:
            return TokenEmbeddings(torch.zeros(0, 1, dtype=torch.float64), is_text_token)
        input_ids = torch.tensor([token_ids], device=self._device)  # (1, T)
        output = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), output_hidden_states=True)
        vectors = output.hidden_states[self._layer][0].double().cpu()  # (T, H)
        return TokenEmbeddings(torch.nn.functional.normalize(vectors, dim=-1), is_text_token)

    def is_truncated(self, text: str) -> bool:
        """Return whether the text is longer than the encoder's window."""
        return len(self._token_ids(text)) > self._window

    def _token_ids(self, text: str, **settings: Any) -> list[int]:
        text = text.strip()
        if text and getattr(self._tokenizer, "add_prefix_space", None) is False:
            text = f" {text}"  # a byte-level tokenizer has other tokens for a word at the start of a text
        return list(self._tokenizer(text, verbose=False, **settings)["input_ids"])


def _load_config(folder: Path, where: str) -> Any:
    try:
        with silence_libraries():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        what = f"{folder} has a config.json that does not load: {error}"
        raise HarnessError(where, what, _HINT_ENCODER_FOLDER) from error


def _max_positions(model: Any) -> int:
    """Return the number of token positions. RoBERTa and its kin number positions from after the padding index."""
    position_count = getattr(model.config, "max_position_embeddings", None)
    if not position_count or position_count < 0:
        return 10**9
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(position_count) - int(module.padding_idx) - 1
    return int(position_count)
