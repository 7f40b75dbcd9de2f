"""Apply a model's output head to chosen positions in chunks: the logits of a whole batch never exist.

The vocabulary is the widest dimension of a small model. 1,000 positions of a vocabulary of 128,000 take 512 MB. Their
softmax takes as much again, and so does their gradient. Here a chunk of the logits gives its part of a sum and its
gradient at once:

    hidden states (N, H) ──> chunk (n, H) ──head──> (n, V) ──> sum       one chunk after the other
    gradient      (N, H) <── chunk (n, H) <──────── (n, V) <──┘          the head's gradient is accumulated in place

The model's own code runs. What it does to logits after the head (scaling, soft caps) is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from harness.model.memory_limits import MAX_LOGIT_BYTES
from harness.model.output_head import output_head

ChunkSum = Callable[[Tensor, slice], Tensor]
"""Called with the logits of a chunk, (n, V), and its place among the N positions; returns a sum over the chunk."""


class ChunkedLogits:
    """The logits of a causal language model at N positions of a batch, row by row.

    A model whose head is not a plain linear layer, or whose layers cannot be called apart from its head, has a single
    chunk of all N positions.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, causal_lm: nn.Module) -> None:
        """Run the model up to its output head.

        Args:
            model: The model to call.
            inputs: Its keyword arguments.
            positions: Booleans of shape (B, T).
            causal_lm: The causal language model, or the PEFT model around it, that `model` is or wraps.

        Raises:
            HarnessError: The model has no output head.
        """
        self._causal_lm: Any = causal_lm
        self._inputs = inputs
        self._head: Any = output_head(causal_lm)
        self._body: nn.Module | None = None
        is_linear = type(self._head) is nn.Linear
        bodies: list[tuple[nn.Module, Any]] = []
        selected: list[Tensor] = []

        def keep_output(body: nn.Module, _: Any, output: Any) -> None:
            bodies.append((body, output))

        def select(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, *rest = arguments  # (B, T, H)
            selected.append(hidden[positions.to(hidden.device)])  # (N, H)
            # The head is called here with no position if it is called for each chunk later.
            return (hidden[:1, :0] if bodies else selected[-1].unsqueeze(0)), *rest

        handles = [self._head.register_forward_pre_hook(select)]
        handles += [body.register_forward_hook(keep_output) for body in (_bodies(causal_lm) if is_linear else ())]
        try:
            logits: Tensor = model(**inputs).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        self._hidden = selected[-1]
        self._logits = None if bodies else logits  # (N, V)
        if bodies:
            self._body, self._body_output = bodies[-1]

    def __len__(self) -> int:
        """Return N."""
        return len(self._hidden)

    def chunks(self) -> Iterator[slice]:
        """Yield the place of each chunk, in order."""
        size = len(self)
        if self._logits is None:
            size = MAX_LOGIT_BYTES // (4 * self._head.weight.shape[0])
        for start in range(0, len(self), max(size, 1)):
            yield slice(start, min(start + max(size, 1), len(self)))

    @torch.no_grad()
    def chunk(self, place: slice) -> Tensor:
        """Return the logits at some of the positions, (n, V), without a graph."""
        if self._logits is not None:
            return self._logits[place]
        with self._head_alone() as apply_head:
            return apply_head(self._hidden[place])[1]

    def sum(self, chunk_sum: ChunkSum) -> Tensor:
        """Return the sum of `chunk_sum` over all chunks, a float32 scalar with its graph.

        Each chunk is called once. Its gradient is computed with it, and may be computed once only.
        """
        if self._logits is not None:
            return chunk_sum(self._logits, slice(0, len(self))).float()
        # What the chunks store is used at once, or is a gradient: `train.offload_activations` does not move it.
        with torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged):
            total: Tensor = _ChunkSums.apply(  # type: ignore[no-untyped-call]
                self._hidden, self._head.weight, self._head.bias, self, chunk_sum
            )
        return total

    @contextmanager
    def _head_alone(self) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Within the context, the model's layers are not run: they return what they have returned for the batch.

        Yields:
            A function of hidden states (n, H). It returns the head's output (n, V), a leaf of the graph, and the
            model's logits (n, V), which follow from it.
        """
        leaf = hidden = torch.empty(0)

        def head_forward(_: Tensor, *arguments: Any, **options: Any) -> Tensor:
            nonlocal leaf
            with torch.no_grad():
                leaf = functional.linear(hidden, self._head.weight, self._head.bias)
            leaf.requires_grad_(torch.is_grad_enabled())
            return leaf.unsqueeze(0)

        def apply_head(chunk: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal hidden
            hidden = chunk
            # `forward`, since the hooks of a sharded model would free the head's weight after a chunk's gradient.
            logits: Tensor = self._causal_lm.forward(**self._inputs).logits[0]
            return leaf, logits

        with (
            _replaced_forward(self._body, lambda *arguments, **options: self._body_output),
            _replaced_forward(self._head, head_forward),
        ):
            yield apply_head


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


class _ChunkSums(torch.autograd.Function):
    """The sum over all chunks, with the gradients of hidden states, the head's weight and its bias."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, logits: ChunkedLogits, chunk_sum: ChunkSum
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        inputs: tuple[Any, ...] = (hidden, weight, bias)
        gradients = [
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        is_needed = any(ctx.needs_input_grad)
        with logits._head_alone() as apply_head:
            for place in logits.chunks():
                with torch.set_grad_enabled(is_needed):
                    leaf, chunk = apply_head(hidden[place])
                    value = chunk_sum(chunk, place)
                total += value.detach()
                if is_needed:
                    (gradient,) = torch.autograd.grad(value, leaf)  # (n, V)
                    _accumulate_head_gradients(gradient, hidden[place], weight, gradients, place)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.saved_tensors]
        return *scaled, None, None


def _accumulate_head_gradients(
    gradient: Tensor, hidden: Tensor, weight: Tensor, gradients: list[Tensor | None], place: slice
) -> None:
    """Add a chunk's part to the gradients of hidden states, weight and bias. gradient: of its logits, (n, V)."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[place] = gradient @ weight.to(gradient.dtype)
    if of_weight is not None:
        if gradient.dtype == hidden.dtype == of_weight.dtype:
            of_weight.addmm_(gradient.T, hidden)
        else:
            of_weight += gradient.T @ hidden.to(gradient.dtype)
    if of_bias is not None:
        of_bias += gradient.sum(0)


@contextmanager
def _replaced_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    earlier = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if earlier is not None:
            module.forward = earlier


def _bodies(causal_lm: Any) -> list[nn.Module]:
    """Return the modules that may compute the head's input from the model's inputs."""
    base = causal_lm.get_base_model() if callable(getattr(causal_lm, "get_base_model", None)) else causal_lm
    decoder = base.get_decoder() if callable(getattr(base, "get_decoder", None)) else None
    candidates = [decoder, getattr(base, "base_model", None)]
    return [body for body in dict.fromkeys(candidates) if isinstance(body, nn.Module) and body is not base]
