"""The plan as tables: requested shares and realized shares."""

from __future__ import annotations

from rich.console import Console

from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.runner import plan_summary
from harness.terminal import plan_table
from harness.types import Share, Stage, StageDataset, StageSource, TokenizedExample

TRAIN_SETTINGS = {
    "epochs": 1, "steps": None, "batch_size": 2, "accumulation": 1, "learning_rate": 1e-4, "scheduler": {"cosine": {}},
    "optimizer": {"adamw": {}}, "warmup_ratio": 0.1, "packing": False, "max_length": 8,
}  # fmt: skip
STAGE_SOURCES = (
    StageSource("desk", "domain"),
    StageSource("chat", "general"),
    StageSource("web", "general", 50),
    StageSource("old", "replay", 1000),
)
REQUESTED_SHARES = (Share(("chat", "web"), 0.25, "rows"),)
REALIZED_SHARES = {
    source: {"rows": rows, "tokens": 0.2, "loss_tokens": loss}
    for source, rows, loss in (("desk", 0.5, 0.4), ("chat", 0.125, 0.1), ("web", 0.125, 0.2), ("old", 0.25, 0.3))
}


def build_stage_dataset():
    rows = TokenizedRows.from_rows(
        TokenizedExample(f"{n:016x}", source, (1, 2, 3), (-100, 2, 3))
        for n, source in enumerate(["desk", "desk", "chat"])
    )
    return StageDataset(
        Stage("one", STAGE_SOURCES, TRAIN_SETTINGS, REQUESTED_SHARES),
        rows,
        [(0,), (1,), (2,)],
        (3,),
        REALIZED_SHARES,
        0.5,
        (REALIZED_SHARES,),
    )


def test_stage_summary_has_rows_of_each_source_and_realized_shares():
    summary = plan_summary._stage_summary(build_stage_dataset())
    assert summary["parts"] == [
        {"source": "desk", "role": "domain", "limit": None, "unit": "loss_tokens", "rows": 2, "tokens": 6,
         "loss_tokens": 4, "realised": 0.4},
        {"source": "chat", "role": "general", "limit": None, "unit": "rows", "rows": 1, "tokens": 3, "loss_tokens": 2,
         "realised": 0.125},
        {"source": "web", "role": "general", "limit": 50, "unit": "rows", "rows": 0, "tokens": 0, "loss_tokens": 0,
         "realised": 0.125},
        {"source": "old", "role": "replay", "limit": 1000, "unit": "loss_tokens", "rows": 0, "tokens": 0,
         "loss_tokens": 0, "realised": 0.3},
    ]  # fmt: skip
    (share,) = summary["shares"]
    assert (share["sources"], share["amount"], share["realised"]) == (("chat", "web"), 0.25, 0.25)
    assert summary["epoch_shares"] == [REALIZED_SHARES]


def test_table_shows_the_requested_share_of_several_sources():
    console = Console(width=160)
    with console.capture() as output:
        console.print(plan_table._stage_table(plan_summary._stage_summary(build_stage_dataset())))
    lines = [" ".join(line.split()) for line in output.get().splitlines()]
    assert "desk domain 2 6 4 all rows 40.00%" in lines
    assert "old replay 0 0 0 all of 1,000 rows at most 30.00%" in lines
    assert "chat general 1 3 2 25.0% of rows, with web 12.50%" in lines
    assert "web general 0 0 0 25.0% of rows, with chat 12.50%" in lines


def test_table_shows_that_weights_are_sharded():
    summary = plan_summary._stage_summary(build_stage_dataset())
    summary["train"] = {**summary["train"], "sharding": "fsdp2"}
    assert "sharded by fsdp2" in plan_table._stage_table(summary).title
    assert "main memory" not in plan_table._stage_table(summary).title
    summary["train"]["offload_activations"] = True
    assert "layer inputs in main memory" in plan_table._stage_table(summary).title
    summary["train"]["offload_shards"] = True
    assert "shards in main memory" in plan_table._stage_table(summary).title
    assert "sharded" not in plan_table._stage_table(plan_summary._stage_summary(build_stage_dataset())).title
