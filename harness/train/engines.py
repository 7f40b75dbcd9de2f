"""The engines by name. TRL is imported only when its engine is asked for."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from harness.train.trainer import StageTrainer


def engine(name: str) -> tuple[type[StageTrainer], type[TrainingArguments], dict[str, Any]]:
    """The trainer, its class of arguments, and the arguments that only it has."""
    if name == "transformers":
        return StageTrainer, TrainingArguments, {}
    from trl import SFTConfig

    from harness.train.trl import TrlTrainer

    return TrlTrainer, SFTConfig, TrlTrainer.ARGUMENTS
