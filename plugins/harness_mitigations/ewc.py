"""Elastic weight consolidation: weights that matter to what is known are held where they were.

Adds lambda / 2 * sum of F (theta - theta0)^2 to what is minimised, F the diagonal of the Fisher information
(Kirkpatrick et al., 2017, arXiv:1612.00796). The pull lambda F (theta - theta0) is added to the gradient in place, once
an update and after the task's gradient was clipped: within the clipped norm it would change the task's step and protect
far less. With an adapter (`lora`) the weights that move are the adapter's, and the pull acts on them: it holds A and B,
not their product.

Knows nothing of the trainer. Costs the Fisher and the anchor, 8 bytes a trainable weight, and one forward and backward
pass a sampled row before each stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import seeds
from harness.contracts import Mitigation, Row, Stage
from harness.errors import HarnessError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Labels = Literal["sampled", "empirical"]

GROUP = 2**24
"""Weights that are pulled at once: bounds the memory of the intermediate results to 8 bytes a weight of these."""


def fisher(
    model: nn.Module, rows: Sequence[Row], *, labels: Labels, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Diagonal Fisher information of the trainable weights, averaged over rows (arXiv:1612.00796).

    F = mean over rows of (gradient of the summed log-likelihood of the row's trained tokens)^2, row by row: the square
    of a batch's mean gradient is another, smaller quantity. The model is in eval mode meanwhile; squares are summed in
    float32; prompts take no part; tied weights stand once, frozen ones not at all.

    rows: each with at least one token that is trained. labels: what the likelihood is of: `sampled`, tokens drawn from
    the model's own prediction at each trained position, gives the Fisher itself without bias; `empirical`, the row's
    own tokens, gives the empirical Fisher. generator: on the CPU; draws the tokens.
    Returns name -> float32 tensor of the weight's shape, on its device, in nats^2 per squared unit of the weight.
    Raises HarnessError when no weight is trainable, or there is no row.
    """
    import torch

    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not named:
        raise HarnessError("mitigations.ewc", "no weight of the model is trainable", "check what freezes them")
    if not rows:
        raise HarnessError("mitigations.ewc", "there is no row to measure the Fisher on", "name a source that has rows")
    weights = list(named.values())
    total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    was_training = model.training
    model.eval()
    try:
        for row in rows:
            likelihood = _log_likelihood(model, row, labels, generator)
            gradients = torch.autograd.grad(likelihood, weights, allow_unused=True)
            for sum_of_squares, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_of_squares.addcmul_(gradient.float(), gradient.float())
    finally:
        model.train(was_training)
    return {name: squares / len(rows) for name, squares in zip(named, total, strict=True)}


def _log_likelihood(model: nn.Module, row: Row, labels: Labels, generator: torch.Generator | None) -> Tensor:
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor(row.input_ids)
    positions = torch.tensor([i for i, label in enumerate(row.labels[1:]) if label != -100], dtype=torch.long)  # (N,)
    logits = model(input_ids=ids[None].to(device), use_cache=False, logits_to_keep=positions.to(device)).logits[0]
    predicted = logits.float().log_softmax(-1)  # (N, V)
    if labels == "sampled":
        targets = torch.multinomial(predicted.detach().exp().cpu(), 1, generator=generator)  # (N, 1)
    else:
        targets = ids[positions + 1, None]
    return predicted.gather(-1, targets.to(device)).sum()


def pull(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor],
    strength: float,
) -> Tensor:
    """Add strength * F (theta - theta0) to the gradients in place; return strength / 2 * sum of F (theta - theta0)^2.

    All four are equally long; weight, gradient, anchor theta0 and importance F of one index have one shape. No
    autograd graph is made.
    """
    import torch

    with torch.no_grad():
        drift = torch._foreach_sub(list(weights), list(anchors))
        force = torch._foreach_mul(drift, list(importances))
        torch._foreach_add_(list(gradients), force, alpha=strength)
        torch._foreach_mul_(force, drift)
        return strength / 2 * torch.stack([product.sum(dtype=torch.float32) for product in force]).sum()


class Ewc(Mitigation):
    """Protect what the model knew at the start of the run, and then what each stage taught it.

    source: whose rows the first Fisher is measured on, before the first stage. strength: lambda. labels: see `fisher`.
    samples: rows that a Fisher is measured on at most, drawn without repetition. normalise: scale each measured Fisher
    to mean 1, so that `strength` means the same for any model and data, in units of L2-SP (arXiv:1802.01483).
    decay: what is kept of the earlier importances when a stage's own are added (online EWC, arXiv:1805.06370).
    """

    def __init__(
        self, source: str, strength: float, labels: Labels, samples: int, normalise: bool, decay: float
    ) -> None:
        self.source, self.strength, self.labels = source, strength, labels
        self.samples, self.normalise, self.decay = samples, normalise, decay
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.finished: Sequence[Row] = ()

    def begin_stage(self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[Row]]) -> None:
        """Anchor the weights as they are; measure what matters to `source`, or to the stage just finished."""
        if self.strength == 0 or (self.importance and not self.finished):
            return
        if not self.importance and not rows.get(self.source):
            raise HarnessError(
                "mitigations.ewc.source",
                f"'{self.source}' has no row to measure the Fisher on",
                "name a source that has rows to train on",
            )
        new = self._measure(stage, model, self.finished or rows[self.source])
        for name, importance in self.importance.items():
            new[name].add_(importance.to(new[name].device), alpha=self.decay)
        self.importance, self.finished = new, ()
        self.anchor = {
            name: weight.detach().float().clone() for name, weight in model.named_parameters() if name in new
        }

    def weight_pull(self, model: PreTrainedModel) -> Tensor | None:
        """Pull every weight that this update moves towards its anchor."""
        if self.strength == 0:
            return None
        moving = [(name, w) for name, w in model.named_parameters() if w.grad is not None and name in self.anchor]
        for name, weight in moving:  # a state that was loaded may lie elsewhere
            self.anchor[name] = self.anchor[name].to(weight.device)
            self.importance[name] = self.importance[name].to(weight.device)
        total = None
        for group in _groups(moving):
            names = [name for name, _ in group]
            value = pull(
                [weight for _, weight in group],
                [weight.grad for _, weight in group if weight.grad is not None],
                [self.anchor[name] for name in names],
                [self.importance[name] for name in names],
                self.strength,
            )
            total = value if total is None else total + value
        return total

    def end_stage(self, stage: Stage, model: PreTrainedModel, rows: Sequence[Row]) -> None:
        """Keep the stage's rows for the Fisher of the next one's beginning: after the last it would be for nothing."""
        self.finished = rows

    def state_dict(self) -> dict[str, Any]:
        """Importances and anchors by name of the weight."""
        return {"importance": self.importance, "anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.importance, self.anchor = dict(state["importance"]), dict(state["anchor"])

    def _measure(self, stage: Stage, model: PreTrainedModel, rows: Sequence[Row]) -> dict[str, Tensor]:
        import torch

        seed = torch.initial_seed()
        chosen = seeds.generator(seed, "ewc", "rows", stage.name).sample(list(rows), min(self.samples, len(rows)))
        generator = torch.Generator().manual_seed(seeds.derive(seed, "ewc", "labels", stage.name))
        found = fisher(model, chosen, labels=self.labels, generator=generator)
        if self.normalise:
            mean = sum(float(f.sum()) for f in found.values()) / sum(f.numel() for f in found.values())
            if mean > 0:
                torch._foreach_div_(list(found.values()), mean)
        return found


def _groups(named: Sequence[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """The same weights in runs of at most `GROUP` numbers, or one weight."""
    group: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, weight in named:
        if group and size + weight.numel() > GROUP:
            yield group
            group, size = [], 0
        group.append((name, weight))
        size += weight.numel()
    if group:
        yield group
