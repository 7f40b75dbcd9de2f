"""The repeated layers of a model."""

from __future__ import annotations

from typing import Any

from torch import nn


def find_decoder_layers(model: Any) -> list[nn.Module]:
    """Return the repeated layers of a model, from the lowest; an empty list if they are not in one list of modules.

    Args:
        model: The model, with or without an adapter.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return list(next(lists, ()))
