"""The exporter `gguf`: one file for llama.cpp and the programs that build on it."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Component, ExportedModel, Exporter, ExportSource, HarnessError
from harness.utils.silence import silence_libraries
from harness_exporters.gguf_converter import convert_to_gguf

if TYPE_CHECKING:
    import numpy

FORMATS = {
    "float32": ("f32", None, 0.01),
    "float16": ("f16", None, 0.05),
    "bfloat16": ("bf16", None, 0.1),
    "q8_0": ("q8_0", None, 0.2),
    "q6_k": ("f32", "LLAMA_FTYPE_MOSTLY_Q6_K", 0.5),
    "q5_k_m": ("f32", "LLAMA_FTYPE_MOSTLY_Q5_K_M", 1.0),
    "q4_k_m": ("f32", "LLAMA_FTYPE_MOSTLY_Q4_K_M", 2.0),
}
"""Option `format` -> output type of the converter, llama.cpp's quantization, largest difference of a log-likelihood.

llama.cpp computes with other roundings than PyTorch, also in float32. The difference is in nats per token.
"""

FORMAT_OPTION: dict[str, Any] = {
    "format": {
        "enum": list(FORMATS),
        "default": "q8_0",
        "description": "Number format of the weights: q8_0 has 8 bits and little loss; q4_k_m, q5_k_m and q6_k are "
        "smaller and lose more.",
    }
}

COMPONENTS = {
    "gguf": Component(
        summary="One GGUF file for llama.cpp, with chat template and stop tokens.",
        factory="harness_exporters.gguf:Gguf",
        options=FORMAT_OPTION,
    )
}

MODEL_FILE = "model.gguf"

LOADING_LINES = """```bash
llama-cli -m {file} -cnv
```

```python
from llama_cpp import Llama

model = Llama({file!r}, n_ctx=4096)
model.create_chat_completion([{{"role": "user", "content": "..."}}], temperature=0)
```
"""


class Gguf(Exporter):
    """Writes a GGUF file with llama.cpp's converter, and loads it with llama-cpp-python."""

    def __init__(self, format: str) -> None:
        """Create an exporter. format: see the option of the component."""
        self._format = format

    def check_available(self) -> None:
        """Check that llama.cpp can be called, which loads the file again.

        Raises:
            HarnessError: llama-cpp-python is not installed.
        """
        if importlib.util.find_spec("llama_cpp") is None:
            raise HarnessError(
                "export gguf",
                "llama-cpp-python, which loads and verifies the file, is not installed",
                "pip install llama-cpp-python (it is compiled, which takes minutes)",
            )

    def export(self, source: ExportSource, folder: Path) -> str:
        """Write the file."""
        return write_gguf(source, folder, self._format)

    def load(self, folder: Path, max_tokens: int) -> ExportedModel:
        """Load the file with llama.cpp."""
        return LlamaCppModel(folder / MODEL_FILE, max_tokens, FORMATS[self._format][2])


def write_gguf(source: ExportSource, folder: Path, format_name: str) -> str:
    """Write `MODEL_FILE` and the model card into a folder.

    Args:
        source: The run's model.
        folder: The folder.
        format_name: A key of `FORMATS`.

    Returns:
        What was written.
    """
    output_type, quantization, _ = FORMATS[format_name]
    merged = folder / "merged"
    with silence_libraries():
        model = source.merge(format_name if format_name in ("float16", "bfloat16") else "float32")
        tokenizer = copy.deepcopy(source.tokenizer)
        vocabulary = tokenizer.get_vocab()
        end_of_turn = next((stop for stop in source.stops if stop in vocabulary), None)
        if end_of_turn is not None:  # a GGUF file names one token that ends an answer
            tokenizer.eos_token = end_of_turn
            model.config.eos_token_id = vocabulary[end_of_turn]
        model.save_pretrained(merged, safe_serialization=True)
        tokenizer.save_pretrained(merged)
    del model
    file = folder / MODEL_FILE
    if quantization is None:
        convert_to_gguf(merged, file, output_type)
    else:
        convert_to_gguf(merged, folder / "full.gguf", output_type)
        _quantize(folder / "full.gguf", file, quantization)
        (folder / "full.gguf").unlink()
    shutil.rmtree(merged)
    source.write_card(folder, LOADING_LINES.format(file=MODEL_FILE))
    template = "with its chat template" if source.chat_template else "without a chat template"
    return f"GGUF file in {format_name} {template}"


def _quantize(source: Path, target: Path, quantization: str) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, quantization)
    with silence_libraries():
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    if code:
        raise HarnessError("export gguf", f"llama.cpp cannot quantize the model (code {code})", "use --set format=q8_0")


class LlamaCppModel:
    """A GGUF file, computed by llama.cpp on the CPU. See `harness.ExportedModel`."""

    def __init__(self, file: Path, max_tokens: int, tolerance: float) -> None:
        """Load a file.

        Args:
            file: The file.
            max_tokens: Longest row.
            tolerance: See `harness.ExportedModel`.

        Raises:
            HarnessError: llama.cpp cannot load it.
        """
        import llama_cpp

        self.tolerance = tolerance
        try:
            self._llama: Any = llama_cpp.Llama(
                str(file), n_ctx=max_tokens, n_batch=max_tokens, n_gpu_layers=0, logits_all=True, verbose=False
            )
        except ValueError as error:
            raise HarnessError(str(file), f"llama.cpp cannot load the file: {error}", "use --to merged") from error
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._llama.model)

    def encode_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a prompt by the chat template of the file; without one, those of the plain text."""
        from llama_cpp import llama_chat_format

        chat_template = self._llama.metadata.get("tokenizer.chat_template")
        if chat_template is None:
            return self.tokenize(messages[-1]["content"])
        begin, end = (
            self._llama.detokenize([token], special=True).decode()
            for token in (self._llama.token_bos(), self._llama.token_eos())
        )
        formatter = llama_chat_format.Jinja2ChatFormatter(chat_template, end, begin)
        return self.tokenize(formatter(messages=list(messages)).prompt)

    def tokenize(self, text: str, *, add_begin_token: bool = False) -> list[int]:
        """Return the tokens of a text with its special tokens."""
        return list(self._llama.tokenize(text.encode(), add_bos=add_begin_token, special=True))

    def logits(self, tokens: Sequence[int]) -> numpy.ndarray:
        """Return the logits after each token, (T, V)."""
        self._llama.reset()
        self._llama.eval(list(tokens))
        logits: numpy.ndarray = self._llama.scores[: len(tokens)].copy()
        return logits

    def ends_answer(self, token: int) -> bool:
        """Return whether llama.cpp ends an answer at the token."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))
