"""One stage of training: rows in the order that the data room laid down, a model, mitigations; a trained model.

Knows the loss, the update and what is written down about it. Knows nothing of templates, mixtures or evaluation.
Two engines, TRL's SFTTrainer and transformers' Trainer, run the same logic (`StageTrainer`) on the same batches.
"""

from __future__ import annotations

from harness.train.checkpoint import latest as latest_checkpoint
from harness.train.checkpoint import load_states, load_weights, reached, save_states
from harness.train.collate import IGNORED, Collator
from harness.train.loss import summed_nll, targets, trained, trained_logits
from harness.train.separation import prove_separate
from harness.train.stage import Trained, seed_mitigations, train, unheard

__all__ = [
    "IGNORED",
    "Collator",
    "Trained",
    "latest_checkpoint",
    "load_states",
    "load_weights",
    "prove_separate",
    "reached",
    "save_states",
    "seed_mitigations",
    "summed_nll",
    "targets",
    "train",
    "trained",
    "trained_logits",
    "unheard",
]
