"""The keys of Axolotl (its config reference)."""

from __future__ import annotations

from typing import Any

from harness.drafting.foreign_hugging_face import (
    CACHES,
    DISTRIBUTED,
    DTYPE,
    HUGGING_FACE,
    KERNELS,
    LAUNCHER,
    LOGS,
    LORA,
    SCHEDULERS,
    SPLIT,
    TRACKERS,
    TRAIN,
    WORKERS,
    to_attention,
    to_optimizer,
)
from harness.drafting.foreign_values import (
    Key,
    NotConvertible,
    choice,
    differs,
    each_epoch,
    missing,
    switch,
    to_epochs,
    to_int,
    to_layers,
    to_number,
    to_share,
    to_texts,
    unneeded,
    when,
)

KERNEL_PLUGINS = ("CutCrossEntropyPlugin", "LigerPlugin", "KernelsPlugin")
"""Plugins of Axolotl that compute the same by other kernels."""


def reject_other_plugins(value: Any) -> None:
    """Accept plugins that change no result: kernels, and a tracker."""
    for plugin in value if isinstance(value, list) else [value]:
        name = str(plugin).rpartition(".")[2]
        if name not in (*KERNEL_PLUGINS, "SwanLabPlugin"):
            raise NotConvertible(f"the plugin {name} changes Axolotl's trainer")


AXOLOTL: dict[str, Key] = {
    **HUGGING_FACE,
    "base_model": Key("model.path", str),
    "revision_of_model": Key("model.revision", str),
    "adapter": Key("", choice({"lora": None, "qlora": None, "none": None, "": None})),
    "lora_r": Key(f"{LORA}.rank", to_int),
    "lora_alpha": Key(f"{LORA}.alpha", to_number),
    "lora_dropout": Key(f"{LORA}.dropout", to_number),
    "lora_target_linear": Key(f"{LORA}.target", when(True, "all-linear", "set lora_target_modules")),
    "lora_target_modules": Key(f"{LORA}.target", to_layers),
    "peft_use_dora": Key(f"{LORA}.dora", bool),
    "peft_use_rslora": Key(f"{LORA}.rslora", bool),
    "val_set_size": Key("held_out", to_share, change=SPLIT),
    "sequence_len": Key(f"{TRAIN}.max_length", to_int, change="longer rows are truncated on the right, not dropped"),
    "sample_packing": Key(f"{TRAIN}.packing", bool),
    "micro_batch_size": Key(f"{TRAIN}.batch_size", to_int),
    "num_epochs": Key(f"{TRAIN}.epochs", to_number),
    "optimizer": Key(f"{TRAIN}.optimizer", to_optimizer),
    "lr_scheduler": Key(f"{TRAIN}.scheduler", SCHEDULERS),
    "flash_attention": Key("model.attention", switch("flash_attention_2")),
    "attn_implementation": Key("model.attention", to_attention),
    "sdp_attention": Key("model.attention", switch("sdpa")),
    "train_on_inputs": missing("the loss is on responses only"),
    "chat_template": Key("template"),
    "evals_per_epoch": Key(f"{TRAIN}.evaluate_epochs", to_epochs),
    "saves_per_epoch": Key(f"{TRAIN}.save_epochs", to_epochs),
    "wandb_project": Key("track.wandb.project", str),
    "wandb_entity": unneeded(TRACKERS),
    "wandb_watch": unneeded(LOGS),
    "wandb_name": unneeded(LOGS),
    "wandb_log_model": unneeded(LOGS),
    "dataset_prepared_path": unneeded(CACHES),
    "pad_to_sequence_len": unneeded("padding is not trained on"),
    "eval_sample_packing": unneeded("rows are evaluated one by one or in batches"),
    "model_type": unneeded("the model's config.json names its class"),
    "tokenizer_type": unneeded("the tokenizer's files name its class"),
    "strict": unneeded("a spec is always validated"),
    "plugins": Key("", reject_other_plugins, unneeded=KERNELS),
    **dict.fromkeys(
        (
            *("liger_rope", "liger_rms_norm", "liger_rms_norm_gated", "liger_glu_activation", "liger_layer_norm"),
            *("liger_fused_linear_cross_entropy", "liger_cross_entropy", "cut_cross_entropy"),
            *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "fused_attn_kernel", "use_kernels"),
            *("flash_attn_fuse_mlp", "flash_attn_rms_norm", "flash_attn_cross_entropy", "flash_attn_fuse_qkv"),
            *("use_scattermoe", "use_sonicmoe", "experts_implementation", "gemma4_hybrid_attn_impl"),
            *("flex_attn_compile_kwargs", "tiled_mlp", "tiled_mlp_num_shards", "use_glm_dsa_kernels"),
            "use_dsv4_kernels",
        ),
        unneeded(KERNELS),
    ),
    **dict.fromkeys(
        (
            *("use_swanlab", "swanlab_project", "swanlab_experiment_name", "swanlab_description", "swanlab_mode"),
            *("use_otel_metrics", "otel_metrics_host", "otel_metrics_port", "use_tensorboard", "use_wandb"),
            *("trackio_project_name", "trackio_run_name", "trackio_space_id", "wandb_run_id", "wandb_mode"),
        ),
        unneeded(TRACKERS),
    ),
    **dict.fromkeys(
        ("context_parallel_size", "tensor_parallel_size", "expert_parallel_size"),
        Key("", when(1, None, DISTRIBUTED)),
    ),
    "dp_shard_size": differs("it is the number of processes: --gpus N"),
    "eot_tokens": differs("the end of a turn is that of the template, which is trained with the response"),
    "eta_min": unneeded("Axolotl does not read it"),
    "eval_batch_size": unneeded("a suite has its own batch_size"),
    "eval_table_size": unneeded(LOGS),
    "eval_max_new_tokens": unneeded(LOGS),
    "do_causal_lm_eval": unneeded("a run evaluates its suites"),
    "eval_causal_lm_metrics": differs("the held-out rows are measured by response_perplexity"),
    "evaluation_strategy": Key(f"{TRAIN}.evaluate_epochs", each_epoch),
    "loss_watchdog_threshold": differs("a run ends if its loss is not finite; a high loss is in its report"),
    "loss_watchdog_patience": unneeded("it belongs to loss_watchdog_threshold"),
    "shuffle_merged_datasets": unneeded("the rows of all sources are in one random order"),
    "streaming": differs("rows are read once and stored on disk, and their order is that of the seed"),
    "streaming_multipack_buffer_size": unneeded("it belongs to streaming"),
    "auto_resume_from_checkpoints": unneeded("harness run --resume RUN resumes a run"),
    "dataset_processes": unneeded(WORKERS),
    "dataset_num_proc": unneeded(WORKERS),
    "low_cpu_mem_usage": unneeded("weights are read from their file as they are needed"),
    "experimental_skip_move_to_device": unneeded("weights are loaded onto the device one after the other"),
    "lora_fan_in_fan_out": unneeded("PEFT sets it to what the layer needs"),
    "resize_token_embeddings_to_32x": differs("the embeddings get no rows beyond the tokens"),
    "hf_use_auth_token": unneeded("the token of hf auth login is used"),
    "float16": Key(f"{TRAIN}.precision", switch("float16"), change=DTYPE),
    "bfloat16": Key(f"{TRAIN}.precision", switch("bfloat16"), change=DTYPE),
    "use_ray": unneeded(LAUNCHER),
    "ray_num_workers": differs(LAUNCHER),
    "debug": unneeded(LOGS),
    "save_first_step": unneeded("a checkpoint is verified when it is written"),
    "lora_modules_to_save": missing("an adapter cannot be trained together with whole layers"),
    "lora_target_parameters": Key(f"{LORA}.parameters", to_texts),
    "tokenizer_use_mistral_common": missing("the tokenizer is that of transformers"),
    "qat": missing("there is no quantization-aware training"),
    "fp8": missing("there is no computation in FP8"),
}
