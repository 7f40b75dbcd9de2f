"""Load a located model's tokenizer, without the model classes of transformers, which take seconds to import."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.model import added_tokens, hub, model_config
from harness.model.locate import ModelLocation
from harness.utils.silence import silence_libraries

REMOTE_CODE_VARIABLE = "HARNESS_TRUST_REMOTE_CODE"
"""Environment variable that is 1 if the command line agrees to execute the code of a model."""

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHERE = "model.path"


def load_tokenizer(location: ModelLocation, settings: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Return the model's fast tokenizer with the tokens that the spec adds, and with a pad token.

    The pad token is the spec's, else the tokenizer's, else the end-of-sequence token. One without a row in the model's
    embeddings is replaced by another control token.

    The padding side is that of the published tokenizer; code that pads sets it.

    Args:
        location: The model, as `resolve_model` returns it.
        settings: The spec's `model`.

    Raises:
        HarnessError: There is no tokenizer, it is a slow one, or it has neither a pad nor an end-of-sequence token.
    """
    location = location.base or location
    tokenizer = load_published_tokenizer(location, settings)
    added_tokens.add_to_tokenizer(tokenizer, location.added)
    config = model_config.load_located_config(location)
    added_tokens.choose_pad_token(tokenizer, model_config.embedding_rows(config), location.added, location.path)
    return tokenizer


def load_published_tokenizer(location: ModelLocation, settings: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Return the model's fast tokenizer as it was published.

    Raises:
        HarnessError: There is no tokenizer, or it is a slow one.
    """
    from transformers import AutoTokenizer  # a second of imports, and torch

    try:
        with silence_libraries():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                location.path, **from_pretrained_options(location, settings)
            )
    except Exception as error:
        raise load_error(error, location, "tokenizer") from error
    if not tokenizer.is_fast:
        raise HarnessError(
            WHERE,
            f"{type(tokenizer).__name__} of '{location.path}' is a slow tokenizer, without token offsets",
            "give a model with a tokenizer.json",
        )
    return tokenizer


def from_pretrained_options(location: ModelLocation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of transformers' `from_pretrained` for a located model."""
    options: dict[str, Any] = {"trust_remote_code": trusts_remote_code(settings)}
    if location.kind == "hub":
        options["revision"] = location.revision or "main"
        options["local_files_only"] = not location.reachable
    return options


def trusts_remote_code(settings: Mapping[str, Any]) -> bool:
    """Return whether Python code of the model is executed: the spec and the command line must agree to it.

    Raises:
        HarnessError: Only the spec does.
    """
    if not settings.get("trust_remote_code", False):
        return False
    if os.environ.get(REMOTE_CODE_VARIABLE) != "1":
        what = "the spec trusts the code of its model, but the command does not"
        hint = f"read that code, and add --trust-remote-code (in Python: set {REMOTE_CODE_VARIABLE}=1)"
        raise HarnessError("model.trust_remote_code", what, hint)
    return True


def load_error(error: BaseException, location: ModelLocation, part: str) -> HarnessError:
    """Return the error as one line with a remedy; raise an error that is not caused by the input."""
    if isinstance(error, HarnessError):
        return error
    if "trust_remote_code" in str(error):
        return HarnessError(
            WHERE,
            f"the {part} of '{location.path}' needs code that comes with it",
            "read that code, and if you trust it, set model.trust_remote_code to true and add --trust-remote-code",
        )
    is_from_pickle = isinstance(error, pickle.UnpicklingError | EOFError) or "PytorchStreamReader" in str(error)
    if is_from_pickle or (_has_pickles(location) and isinstance(error, _SHAPE_ERRORS)):
        return _weight_file_error(error, location, part)
    if location.kind == "hub":
        return hub.hub_error(error, location.path, location.revision)
    if isinstance(error, OSError | ValueError | ImportError | KeyError) or type(error).__name__ == "SafetensorError":
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = _missing_package_hint(error) or "check that the folder is complete"
        return HarnessError(WHERE, f"the {part} of '{location.path}' cannot be loaded: {text}", hint)
    raise error


_SHAPE_ERRORS = (AttributeError, TypeError, LookupError, UnicodeError)
"""What transformers raises for a file of weights that has something else than tensors by name."""


def _has_pickles(location: ModelLocation) -> bool:
    folder = Path(location.path)
    return folder.is_dir() and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))


def _missing_package_hint(error: BaseException) -> str | None:
    """Return how to install the package that loading needs; None if no package is missing."""
    named = re.search(r"pip install (?:-U |--upgrade )?([\w.-]+)", str(error))
    if isinstance(error, ImportError):
        module = (error.name or "").partition(".")[0]
        required = re.search(r"requires? the (\w+) library", str(error))
        package = named[1] if named else module or (required[1].lower() if required else "")
        return f"pip install {package}" if package else "install the package that the message names"
    return f"pip install {named[1]}" if named else None


def _weight_file_error(error: BaseException, location: ModelLocation, part: str) -> HarnessError:
    """Return the error of a `.bin` file. torch's own text advises to execute the code in the file."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign is None:
        what = f"the {part} of '{location.path}' cannot be loaded: a .bin file is damaged or has no weights"
        return HarnessError(WHERE, what, "copy it again, or give a folder with model.safetensors")
    return HarnessError(
        WHERE,
        f"the {part} of '{location.path}' cannot be loaded: a .bin file holds an object of {foreign[1]}, whose code "
        "would be executed",
        "save only the weights: model.save_pretrained(FOLDER) writes model.safetensors",
    )
