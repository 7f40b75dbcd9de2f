"""Train a stage in the processes of the environment, with sharded weights or without, and resume it; used by a test.

    python sharded_stage.py FOLDER BATCH_SIZE SHARDING      none, fsdp2, or offload: fsdp2 with shards in main memory

Writes to FOLDER/result.pt, for each case: weights, log, what a check in the middle of the stage found, the memory, the
weights of the resumed stage, and for the case `full` the weights
after a second stage.
"""

from __future__ import annotations

import os
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from harness.model import quantization, quantized_experts
from harness.training.train_stage import train_stage
from harness.types import Stage, StageDataset, StageSource, TokenizedExample

ADAMW = {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}}
SETTINGS = {
    "engine": "transformers", "epochs": 1, "steps": None, "learning_rate": 1e-3, "accumulation": 2,
    "scheduler": {"linear": {"final": 0.0}}, "optimizer": ADAMW, "warmup_ratio": 0.2, "weight_decay": 0.1,
    "max_grad_norm": 0.5, "max_length": 64, "packing": False, "precision": "float32", "gradient_checkpointing": False,
    "log_steps": 1, "save_steps": 2, "skip_nonfinite": 1,
}  # fmt: skip
CASES = {
    "full": {},
    "tied": {"gradient_checkpointing": True, "engine": "trl"},
    "lora": {},
    "lora bfloat16": {"precision": "bfloat16", "optimizer": {"lion": {"betas": [0.9, 0.99]}}, "learning_rate": 1e-4},
}
if find_spec("bitsandbytes"):
    CASES |= {"lora 4 bits": {}, "lora 4 bits experts": {}}
ROWS = 30
"""The last step is not full: a process has no row in it."""


def create_rows(number: int, seed: int) -> tuple[TokenizedExample, ...]:
    numbers = random.Random(seed)
    rows = []
    for index in range(number):
        ids = tuple(numbers.randrange(1, 50) for _ in range(numbers.randint(4, 12)))
        rows.append(TokenizedExample(f"row-{index}", "source", ids, (-100,) * 2 + ids[2:]))
    return tuple(rows)


def create_model(case: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = {
        "vocab_size": 51,
        "pad_token_id": 0,
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # an odd vocabulary: the parts of the two processes differ in size
    if case == "lora 4 bits experts":
        experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 6}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config, **experts, num_key_value_heads=1))
    else:
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=case == "tied", **config))
    if not case.startswith("lora"):
        return model
    model = quantized(model) if "4 bits" in case else model.bfloat16()
    with quantized_experts.experts_as_parameters(model):
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        weight.data = weight.data.float() if "lora_" in name else weight.data
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def quantized(model: torch.nn.Module) -> torch.nn.Module:
    with TemporaryDirectory() as folder:
        # Within a process group `save_pretrained` of the main process alone writes the weights.
        model.config.save_pretrained(folder)
        save_file(model.state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        options = {"bits": 4, "type": "nf4", "double": True, "experts": True}
        config = quantization.bitsandbytes_config(options, torch.float32)
        with quantized_experts.quantized_while_loading({"bitsandbytes": options}):
            model = type(model).from_pretrained(folder, quantization_config=config, device_map={"": "cpu"})
    quantization.prepare_quantized_layers(model)
    return model


def main() -> None:
    folder, batch_size, sharding = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    sharded = {"sharding": None if sharding == "none" else "fsdp2", "offload_shards": sharding == "offload"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0})), pad_token="<pad>")
    result = {}
    for case, changes in CASES.items():
        rows = create_rows(ROWS, 1)
        settings = {**SETTINGS, **changes, "batch_size": batch_size, **sharded}
        stage = Stage("stage", (StageSource("source", "domain"),), settings)
        data = StageDataset(stage, rows, tuple((index,) for index in range(ROWS)), (ROWS,), {}, 1.0)
        results = []
        for resume in (None, folder / case / "checkpoints" / "checkpoint-2"):
            model, seen = create_model(case), {}

            def check(step: int, model=model, seen=seen) -> bool:
                """Run the model alone in the main process, as an evaluation does."""
                if step == 3 and os.environ["RANK"] == "0":
                    seen["logits"] = model(input_ids=torch.tensor([[1, 2, 3]])).logits.detach()
                    seen["classes"] = [type(module).__name__ for module in model.modules()]
                return False

            trained = train_stage(
                model, tokenizer, data, {}, seed=0, folder=folder / case, resume=resume, stop_check=check,
                check_steps=frozenset({3}),
            )  # fmt: skip
            if case == "full" and resume is None:  # a second stage with the same model
                weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
                train_stage(model, tokenizer, data, {}, seed=0, folder=folder / "second")
                second = {name: weight.detach() for name, weight in model.named_parameters()}
            else:
                weights = {name: weight.detach() for name, weight in model.named_parameters()}
            results.append((weights, trained, seen, [type(module).__name__ for module in model.modules()]))
        (weights, trained, seen, classes), (resumed, *_) = results
        assert classes == [type(module).__name__ for module in create_model(case).modules()]
        result[case] = {
            "weights": weights, "log": list(trained.log), "memory": dict(trained.memory), "resumed": resumed, **seen,
        }  # fmt: skip
    result["full"]["second"] = second
    if os.environ["RANK"] == "0":
        torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main()
