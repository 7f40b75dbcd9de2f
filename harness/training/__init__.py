"""Train one stage: trainer, loss, collator, checkpoints."""
