"""Examples of values, which editors offer for completion: path in the spec -> values. `*` is a name that you choose."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, list[Any]] = {
    "name": ["support-bot"],
    "model": [{"path": "HuggingFaceTB/SmolLM2-135M-Instruct"}],
    "model.path": ["HuggingFaceTB/SmolLM2-135M-Instruct", "./models/my-model", "run:my-run"],
    "template": ["tokenizer", "chatml", {"alpaca": {}}],
    "sources": [{"tickets": {"jsonl": {"path": "data/tickets.jsonl", "held_out": 0.1}}}],
    "sources.*": [
        {"jsonl": {"path": "data/train.jsonl"}},
        {"csv": {"path": "data/train.csv", "held_out": 0.1}},
        {"jsonl": {"path": "data/tickets.jsonl", "held_out": {"share": 0.1, "group": "customer_id"}}},
    ],
    "mode": [
        {"domain": {"sources": ["tickets"]}},
        {"mixed": {"domain": ["tickets"], "general": ["chat"]}},
        {"continual": {"stages": [{"name": "first", "domain": ["tickets"]}, {"name": "second", "domain": ["mails"]}]}},
    ],
    "mitigations": ["lora", {"mixing": {"share": 0.1}, "lora": {"rank": 16}}, {"ewc": {"source": "chat"}}],
    "train": [{"epochs": 2, "learning_rate": 1e-4}],
    "train.steps": [200],
    "train.save_steps": [100],
    "train.evaluate_steps": [50],
    "train.evaluate_suites": [["tickets", "chat"]],
    "evaluate": [{"tickets": {"source": "tickets", "metrics": {"rouge": {}, "response_perplexity": {}}}}],
    "evaluate.*": [{"source": "tickets", "metrics": {"rouge": {}, "response_perplexity": {}}}],
    "evaluate.*.source": ["tickets"],
    "evaluate.*.metrics": [{"rouge": {}, "response_perplexity": {}}, {"kl_to_base": {}}, "exact_match"],
    "evaluate.*.primary": ["response_perplexity"],
    "evaluate.*.slice_by": [["language"]],
    "evaluate.*.group": ["document"],
    "gate": [[{"score": "chat/response_perplexity", "rises_at_most": 0.5}]],
    "arms": [{"named": {"naive": {}, "ewc": {"mitigations.ewc": {"source": "chat"}}}, "seeds": [0, 1, 2]}],
    "arms.named": [{"naive": {}, "lower_lr": {"train.learning_rate": 1e-5}}],
    "arms.matrix": [{"mitigations.mixing.share": [0, 0.05, 0.1, 0.25]}],
    "arms.seeds": [[0, 1, 2], 3],
    "arms.baseline": ["naive", ["naive", "lower_lr"]],
    "arms.gain": ["tickets/response_perplexity"],
    "arms.forgetting": ["chat/response_perplexity", "forgetting:response_nll"],
    "track.mlflow.uri": ["sqlite:///mlflow.db", "http://127.0.0.1:5000"],
    "track.mlflow.experiment": ["support"],
}
