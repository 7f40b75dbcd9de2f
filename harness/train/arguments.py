"""From a stage's settings to the arguments of transformers' Trainer.

Knows what our words are called there, and what is switched off: its own logging, reporting, shuffling and columns.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness import model as models


def autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """The format that the computation runs in beside float32 weights; None: float32 throughout."""
    dtype = models.dtype(precision, device)
    return None if dtype == torch.float32 else dtype


def training_arguments(
    settings: Mapping[str, Any], *, seed: int, folder: Path, device: torch.device, computation: torch.dtype | None
) -> dict[str, Any]:
    """Keyword arguments for `TrainingArguments`, or a subclass, of one stage.

    settings: the stage's `train`. seed: of this stage alone. folder: of checkpoints, made only if there are any.
    computation: see `autocast`. To the Trainer the stage is one epoch: its slots hold all epochs one after the other.
    """
    save = settings["save_steps"]
    return {
        "output_dir": str(folder) if save else tempfile.gettempdir(),
        "per_device_train_batch_size": settings["batch_size"],
        "gradient_accumulation_steps": settings["accumulation"],
        "num_train_epochs": 1,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["scheduler"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "optim": "adamw_torch_fused",
        "bf16": computation == torch.bfloat16,
        "fp16": computation == torch.float16,
        "save_strategy": "steps" if save else "no",
        "save_steps": save or 1,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "average_tokens_across_devices": True,
        "ddp_find_unused_parameters": False,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
    }


def warmup_steps(ratio: float, steps: int) -> int:
    """Updates over which the learning rate rises from 0, rounded up; the scheduler `constant` takes no notice."""
    return math.ceil(round(ratio * steps, 6))  # 0.07 * 100 is a little over 7
