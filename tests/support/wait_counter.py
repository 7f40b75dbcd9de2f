"""Count how often code waits for the device: each operation that copies a value to the host waits."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITING_OPERATORS = {
    aten._local_scalar_dense.default: "scalar",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "mask",
}


class WaitCounter(TorchDispatchMode):
    """Counts the operations that wait, on the CPU, in everything that runs within the context."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts = Counter()
        for method in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, method, self._counted(getattr(torch.Tensor, method), method))

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        if operator in WAITING_OPERATORS:
            self.counts[WAITING_OPERATORS[operator]] += 1
        if operator is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in arguments[1]):
            self.counts["mask"] += 1
        return operator(*arguments, **(options or {}))

    def _counted(self, method, name):
        def counted(tensor, *arguments, **options):
            self.counts[name] += 1
            return method(tensor, *arguments, **options)

        return counted
