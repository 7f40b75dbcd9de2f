"""An encoder of transformers, from a folder: texts → one embedding a token. Knows models, not metrics.

Nothing is fetched, and no code of the folder is run. The random state of torch is as before after loading, so that a
metric within a run changes nothing of what is trained after it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from harness import HarnessError
from harness.model.device import select_device
from harness.utils import file_digests
from harness.utils.silence import silence_libraries

_TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "merges.txt", "*.model")
_HINT_ENCODER_FOLDER = "name the folder of an encoder as transformers saves it, with its tokenizer"


@dataclass(frozen=True)
class TokenEmbeddings:
    """One text. vectors: (T, H), of unit length, float64, special tokens included. is_text_token: (T,), whether a
    token is of the text, and not its begin or end."""

    vectors: torch.Tensor
    is_text_token: torch.Tensor


def resolve_layer(folder: Path, layer: int | None, where: str) -> int:
    """The layer whose output is read: `layer`, or three quarters up the encoder where it is None. Loads no weights.

    Raises HarnessError, with `where` before the option's name, for what is no folder of an encoder, or has no such
    layer.
    """
    place = f"{where}.model"
    if not (folder / "config.json").is_file():
        raise HarnessError(place, f"{folder} is no folder of a model: it has no config.json", _HINT_ENCODER_FOLDER)
    if not file_digests.weight_files(folder):
        raise HarnessError(
            place, f"{folder} has no weights (*.safetensors or pytorch_model*.bin)", _HINT_ENCODER_FOLDER
        )
    config = _load_config(folder, place)
    if config.is_encoder_decoder:
        what = f"{folder} is a {config.model_type}, an encoder with a decoder"
        raise HarnessError(place, what, "name an encoder alone, such as BERT or XLM-RoBERTa")
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise HarnessError(
            place, f"{folder} is a {config.model_type}, which is no encoder of text", _HINT_ENCODER_FOLDER
        )
    if layer is not None and layer > layers:
        raise HarnessError(f"{where}.layer", f"is {layer}, and the encoder has {layers} layers", "choose one of them")
    return int(layers * 0.75 + 0.5) if layer is None else layer


def encoder_fingerprint(folder: Path) -> str:
    """The folder's name, and twelve digits of a digest of its weights, config and tokenizer."""
    found = hashlib.sha256(file_digests.digest_folder(folder).encode())
    for file in sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}):
        found.update(f"{file.name}\0{file_digests.digest_file(file)}\n".encode())
    return f"{folder.name}@{found.hexdigest()[:12]}"


class TextEncoder:
    """The loaded encoder, in float32. folder, layer: as `resolve_layer` has it; where: of the option, for errors.

    on_cpu: on the CPU even where there is a CUDA device.
    Raises HarnessError where tokenizer or weights do not load, or some of the weights are missing.
    """

    def __init__(self, folder: Path, layer: int, *, on_cpu: bool, where: str) -> None:
        self._layer = layer
        self._device = torch.device("cpu") if on_cpu else select_device()
        with torch.random.fork_rng(devices=[]), silence_libraries():  # a checkpoint without a pooler gets a random one
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                model, info = AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
            except Exception as error:  # transformers raises of all kinds, and each is of this folder
                raise HarnessError(where, f"{folder} does not load: {error}", _HINT_ENCODER_FOLDER) from error
        missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
        if missing:
            what = f"{folder} lacks {len(missing)} of the weights of its encoder, first {missing[0]}"
            raise HarnessError(where, what, "name the folder of a checkpoint that is whole")
        self._model: Any = model.to(self._device).eval()
        self._window = min(self._tokenizer.model_max_length, _max_positions(self._model))
        self._boundary_tokens = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id} - {None}

    @torch.no_grad()
    def __call__(self, text: str) -> TokenEmbeddings:
        """The embeddings of the text, by itself: no padding and no neighbour has a part in them."""
        ids = self._token_ids(text, max_length=self._window, truncation=True)
        counts = torch.tensor([token not in self._boundary_tokens for token in ids], dtype=torch.bool)
        if not ids:
            return TokenEmbeddings(torch.zeros(0, 1, dtype=torch.float64), counts)
        given = torch.tensor([ids], device=self._device)  # (1, T)
        output = self._model(input_ids=given, attention_mask=torch.ones_like(given), output_hidden_states=True)
        vectors = output.hidden_states[self._layer][0].double().cpu()  # (T, H)
        return TokenEmbeddings(torch.nn.functional.normalize(vectors, dim=-1), counts)

    def is_truncated(self, text: str) -> bool:
        """Whether the text loses its end to the encoder's window."""
        return len(self._token_ids(text)) > self._window

    def _token_ids(self, text: str, **settings: Any) -> list[int]:
        text = text.strip()
        if text and getattr(self._tokenizer, "add_prefix_space", None) is False:
            text = f" {text}"  # a byte-level tokenizer has other tokens for a word at the very beginning
        return list(self._tokenizer(text, verbose=False, **settings)["input_ids"])


def _load_config(folder: Path, where: str) -> Any:
    try:
        with silence_libraries():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise HarnessError(
            where, f"{folder} has a config.json that does not load: {error}", _HINT_ENCODER_FOLDER
        ) from error


def _max_positions(model: Any) -> int:
    """The tokens that the encoder has positions for. RoBERTa and its kin begin to count behind the padding's number."""
    known = getattr(model.config, "max_position_embeddings", None)
    if not known or known < 0:
        return 10**9
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(known) - int(module.padding_idx) - 1
    return int(known)
