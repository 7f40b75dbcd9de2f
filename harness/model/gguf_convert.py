"""Convert a GGUF file to a plain model folder: bfloat16 safetensors, config, tokenizer and chat template.

transformers reads GGUF slowly, and cannot save the model that it reads. So the weights are moved into a plain model of
the same class first.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import HarnessError
from harness.model import gguf_header
from harness.types import Progress
from harness.utils.formatting import join_names
from harness.utils.silence import silence_libraries
from harness.utils.write_errors import is_disk_full_error

WHERE = "model.path"

# Percentage of the total time after each step, measured on 135 million weights with 49,152 tokens
_TOKENIZER, _CONFIG, _TENSORS = 18, 80, 95

_PROBE = "Hello, world!  Grüße 你好 <|im_start|>user\n\tdef f(x): return x**2\n"


def convert_gguf(file: Path, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write the GGUF file's model into the folder, so that `from_pretrained` can load it.

    The weights are those that llama.cpp would compute with, dequantized in float32 and rounded to bfloat16.

    Args:
        file: The GGUF file.
        folder: The folder of the model; it must not exist.
        progress: Called with a percentage of the total.

    Returns:
        Metadata: `parameters` (tied weights counted once) and the versions of `transformers` and `gguf`.

    Raises:
        HarnessError: transformers cannot read the file, or would read it incorrectly.
    """
    header = gguf_header.read_gguf_header(file)
    _reject_rope_scaling(file, header)
    folder.mkdir(parents=True)
    # in an empty folder: transformers would also read configs next to the file
    source_folder = folder.with_name(folder.name + ".gguf")
    source_folder.mkdir()
    (source_folder / "model.gguf").symlink_to(file.resolve())
    try:
        with silence_libraries(), _report_tensor_progress(progress):
            progress("prepare", 0, 100, "reading the tokenizer", "%")
            tokenizer = AutoTokenizer.from_pretrained(source_folder, gguf_file="model.gguf")
            progress("prepare", _TOKENIZER, 100, "reading the config", "%")
            model = _unquantized_copy(_load_gguf(source_folder), file)
            progress("prepare", _TENSORS, 100, "writing safetensors", "%")
            _sync_special_tokens(model, tokenizer)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            _verify_saved_tokenizer(tokenizer, folder, file)
    except (HarnessError, MemoryError):
        raise
    except Exception as error:
        if is_disk_full_error(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise HarnessError(
            WHERE,
            f"transformers {transformers.__version__} cannot read '{file.name}' (architecture {header.architecture}): "
            f"{type(error).__name__}: {error}",
            "use the model's original weights instead of the GGUF file",
        ) from error
    progress("prepare", 100, 100, "", "%")
    gguf_version = importlib.metadata.version("gguf")
    return {"parameters": model.num_parameters(), "transformers": transformers.__version__, "gguf": gguf_version}


def _reject_rope_scaling(file: Path, header: gguf_header.GgufHeader) -> None:
    # transformers ignores these tensors silently, and long texts would be computed incorrectly (Llama 3.1, Phi 3)
    scaled = [name for name in header.tensor_names if name.startswith(("rope_freqs", "rope_factors"))]
    if scaled:
        raise HarnessError(
            WHERE,
            f"'{file.name}' scales its rotary positions ({scaled[0]}), which transformers does not read from GGUF",
            "use the model's original weights instead",
        )


def _load_gguf(folder: Path) -> PreTrainedModel:
    """Load the model with transformers, and require that the file has every weight."""
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep some architectures quantized
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    auto_class: Any = AutoModelForCausalLM  # its type hints do not know `output_loading_info`
    model, info = auto_class.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.bfloat16, output_loading_info=True, **options
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise HarnessError(WHERE, f"the GGUF file lacks weights: {join_names(missing[:3])} ({len(missing)} in all)")
    return cast(PreTrainedModel, model)


def _unquantized_copy(model: PreTrainedModel, file: Path) -> PreTrainedModel:
    """Return a model of the same class with the same weights that is not marked as quantized."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    if hasattr(config, "_model_name_or_path"):  # the file's title, not a path
        del config._model_name_or_path
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    # a buffer that is computed and not saved may stay on the meta device; a weight must not
    if any(weight.is_meta for weight in plain.parameters()):
        raise HarnessError(WHERE, f"'{file.name}' does not fill every weight of {type(plain).__name__}")
    return plain


def _sync_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make config and generation config agree with the tokenizer on the special tokens."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        if value is not None:
            setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**{name: value for name, value in ids.items() if value is not None})


def _verify_saved_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, file: Path) -> None:
    """Raise HarnessError unless the saved tokenizer gives the same tokens as the file's."""
    saved_tokenizer = AutoTokenizer.from_pretrained(folder)
    for special in (True, False):
        if (
            saved_tokenizer(_PROBE, add_special_tokens=special).input_ids
            != tokenizer(_PROBE, add_special_tokens=special).input_ids
        ):
            raise HarnessError(
                WHERE,
                f"the tokenizer of '{file.name}' changes when it is saved",
                "use the model's original weights instead",
            )


@contextlib.contextmanager
def _report_tensor_progress(progress: Progress) -> Iterator[None]:
    """Within the context, report each dequantized tensor instead of the bar that transformers draws with tqdm."""

    def report_tensors(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        all_tensors = list(tensors)
        for index, tensor in enumerate(all_tensors):
            done = _CONFIG + (_TENSORS - _CONFIG) * index // len(all_tensors)
            progress("prepare", done, 100, f"dequantizing tensor {index + 1} of {len(all_tensors)}", "%")
            yield tensor

    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    tqdm = getattr(reader, "tqdm", None)
    if tqdm is not None:
        reader.tqdm = report_tensors
    try:
        yield
    finally:
        if tqdm is not None:
            reader.tqdm = tqdm
