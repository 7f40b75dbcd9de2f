"""Probe, before a run's first evaluation, what the batches of its model may look like, and report it."""

from __future__ import annotations

from typing import Any

from harness.evaluation.batch_support import FULL_SUPPORT, BatchSupport
from harness.evaluation.padding_probe import probe_batch_support
from harness.events import WarningRaised
from harness.model.precision import autocast_context
from harness.registry import Registry
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun


def probe_and_warn(
    model: Any, prepared: PreparedRun, registry: Registry, folder: RunFolder | None = None
) -> BatchSupport:
    """Probe the model if it is evaluated on any suite, and emit what differs from the usual as warnings.

    Args:
        model: The model, in evaluation or training mode.
        prepared: The prepared run.
        registry: Receives the warnings.
        folder: The folder of a run, whose data.json gets the warnings for its report; None without one.

    Raises:
        HarnessError: The model cannot compute a row of ordinary length.
    """
    required = [
        # A server that renders prompts itself is compared with answers that are generated here.
        (metric.requires, None if suite.server is not None and suite.server["chat"] else suite.server)
        for suite in prepared.plan.suites
        for metric in prepared.metrics[suite.name].values()
    ]
    if not any(requires != "answer" or server is None for requires, server in required):
        return FULL_SUPPORT
    with autocast_context(model, prepared.plan.train["precision"]):
        support = probe_batch_support(model, prepared.tokenizer)
    generates = any(requires == "answer" and server is None for requires, server in required)
    warnings = list(support.warnings(generates=generates))
    for text in warnings:
        registry.emit(WarningRaised(text=text))
    data = None if folder is None or not warnings else folder.read_json("data.json")
    if folder is not None and data is not None:
        folder.write_json("data.json", {**data, "warnings": [*data.get("warnings", ()), *warnings]})
    return support
