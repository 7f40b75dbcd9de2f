"""The state of the mitigations beside a checkpoint: tensors, numbers and strings; reading it runs no code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.contracts import Mitigation
from harness.errors import RunError

FILE = "mitigations.pt"


def save_states(mitigations: Mapping[str, Mitigation], folder: Path) -> None:
    """Write what each mitigation must keep into `folder`; the file appears whole or not at all."""
    part = folder / f"{FILE}.part"
    torch.save({name: mitigation.state_dict() for name, mitigation in mitigations.items()}, part)
    os.replace(part, folder / FILE)


def load_states(mitigations: Mapping[str, Mitigation], folder: Path) -> None:
    """Give each mitigation back what `save_states` wrote. Raises RunError when the file does not fit them."""
    path = folder / FILE
    try:
        states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = type(error).__name__
        raise RunError(str(path), f"it cannot be read ({why})", "go on from an earlier checkpoint") from error
    if states.keys() != mitigations.keys():
        there, named = (", ".join(sorted(names)) or "none" for names in (states, mitigations))
        raise RunError(
            str(path),
            f"it is of the mitigations {there}, the spec names {named}",
            "go on with the mitigations that the checkpoint was written with",
        )
    for name, mitigation in mitigations.items():
        mitigation.load_state_dict(states[name])
