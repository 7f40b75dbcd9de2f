"""One stage of training: rows in the order that the data room laid down, a model, mitigations; a trained model.

Knows the loss, the update and what is written down about it. Knows nothing of templates, mixtures or evaluation.
Two engines, TRL's SFTTrainer and transformers' Trainer, run the same logic (`StageTrainer`) on the same batches.
"""

from __future__ import annotations

from harness.train.collate import IGNORED, Collator
from harness.train.loss import only_at, summed_nll
from harness.train.separation import prove_separate
from harness.train.stage import Trained, seed_mitigations, train

__all__ = ["IGNORED", "Collator", "Trained", "only_at", "prove_separate", "seed_mitigations", "summed_nll", "train"]
