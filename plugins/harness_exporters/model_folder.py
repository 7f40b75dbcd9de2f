"""A folder with a model that plain transformers loads: written for the exporters, and loaded again to be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import ExportSource
from harness.utils.silence import silence_libraries

if TYPE_CHECKING:
    import numpy

DTYPE_OPTION: dict[str, Any] = {
    "dtype": {
        "enum": ["auto", "float32", "bfloat16", "float16"],
        "default": "auto",
        "description": "Number format of the weights. auto: that of the base model's files.",
    }
}
"""The JSON Schema of the option `dtype`."""

TOLERANCE = {"float32": 0.001, "bfloat16": 0.05, "float16": 0.01}
"""Number format of the weights -> largest difference of a log-likelihood, in nats per token."""

LOADING_LINES = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r}, dtype={dtype!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
```
"""


def write_model_folder(source: ExportSource, folder: Path, dtype: str, *, load_from: str = ".") -> str:
    """Write the merged model, its tokenizer with chat template, and the model card.

    Args:
        source: The run's model.
        folder: An empty folder.
        dtype: See `DTYPE_OPTION`.
        load_from: What the model card loads the model from.

    Returns:
        What was written.
    """
    with silence_libraries():
        model = source.merge(dtype)
        model.save_pretrained(folder, safe_serialization=True)
        source.tokenizer.save_pretrained(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    source.write_card(folder, LOADING_LINES.format(folder=load_from, dtype=dtype))
    template = "with its chat template" if source.chat_template else "without a chat template"
    return f"merged model in {dtype} {template}"


class TransformersModel:
    """A model that transformers loads, computed in float32. See `harness.ExportedModel`."""

    def __init__(self, model: Any, tokenizer: Any, dtype: str) -> None:
        """Use a model. dtype: the number format of its stored weights."""
        self._model, self._tokenizer = model.float().eval(), tokenizer
        self.tolerance = TOLERANCE.get(dtype, TOLERANCE["bfloat16"])

    @classmethod
    def from_folder(cls, folder: Path) -> TransformersModel:
        """Load model and tokenizer from a folder."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        with silence_libraries():
            if (folder / "adapter_config.json").is_file():
                from peft import AutoPeftModelForCausalLM

                model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="float32")
                return cls(model, AutoTokenizer.from_pretrained(folder), "float32")
            dtype = str(AutoConfig.from_pretrained(folder).dtype or "float32").removeprefix("torch.")
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
            return cls(model, AutoTokenizer.from_pretrained(folder), dtype)

    def encode_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a prompt; without a chat template, those of the plain text."""
        if not self._tokenizer.chat_template:
            return list(self._tokenizer(messages[-1]["content"])["input_ids"])
        prompt = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return list(self._tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def logits(self, tokens: Sequence[int]) -> numpy.ndarray:
        """Return the logits after each token, (T, V)."""
        import torch

        with torch.no_grad():
            logits = self._model(input_ids=torch.tensor([list(tokens)])).logits[0]
        result: numpy.ndarray = logits.float().numpy()
        return result

    def ends_answer(self, token: int) -> bool:
        """Return whether the generation config stops at the token."""
        ends = self._model.generation_config.eos_token_id
        return token in (ends if isinstance(ends, list) else [ends])
