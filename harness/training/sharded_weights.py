"""`train.sharding`: weights, gradients and optimizer states divided among the processes of a run (FSDP2 of torch).

Every decoder layer is a unit: its weights are gathered just before it computes, and freed after it (ZeRO stage 3,
arXiv:1910.02054). Embeddings, output head and last norm are a unit together. Each process keeps a part of every weight,
of its gradient and of its optimizer state:

    weight (d, k)     process 0: rows 0 … d/2        process 1: rows d/2 … d

With `train.offload_shards` these parts are in main memory. What processes exchange is moved to their devices first,
since NCCL sends nothing from main memory.

A model is sharded while a stage is trained, and only then. Between stages, for evaluations within one, and for
checkpoints it is the plain model again, whose files do not depend on the number of processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from harness.errors import HarnessError
from harness.model.decoder_layers import find_decoder_layers

WHERE = "train.sharding"


class ShardedWeights:
    """A model whose weights are divided among the processes.

    Attributes:
        model: The model.
    """

    def __init__(self, model: nn.Module, *, offload: bool = False) -> None:
        """Divide the weights of a model, in place.

        Args:
            model: The model, with the same weights in every process.
            offload: Whether the parts are stored in main memory.

        Raises:
            HarnessError: The model has no list of layers.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        layers = find_decoder_layers(model)
        if not layers:
            what = f"a {getattr(model.config, 'model_type', '?')} model has no list of layers that could be sharded"
            raise HarnessError(WHERE, what, "set it to null")
        self.model = model
        self._plain = _own_parameters(model)
        self._units: list[Any] = [*layers, model]
        self._plain_classes = [type(unit) for unit in self._units]
        self._managed = {module: set(vars(module)) for module in model.modules()}
        hooks = [(set(unit._forward_pre_hooks), set(unit._forward_hooks)) for unit in self._units]
        device = next(model.parameters()).device.type
        mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
        policy = CPUOffloadPolicy(pin_memory=device == "cuda") if offload else OffloadPolicy()
        for unit in self._units:
            fully_shard(unit, mesh=mesh, offload_policy=policy)
        self._sharded_classes = [type(unit) for unit in self._units]
        self._hooks = [
            (
                {key: hook for key, hook in unit._forward_pre_hooks.items() if key not in before},
                {key: hook for key, hook in unit._forward_hooks.items() if key not in after},
            )
            for unit, (before, after) in zip(self._units, hooks, strict=True)
        ]
        self._shards = _own_parameters(model)
        self._free_plain_weights()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within the context the model is the plain model with all weights, in every process. It is not changed."""
        self.gather()
        try:
            yield
        finally:
            self._install(self._shards, self._sharded_classes)
            for unit, (pre_hooks, hooks) in zip(self._units, self._hooks, strict=True):
                unit._forward_pre_hooks.update(pre_hooks)
                for key in reversed(pre_hooks):
                    unit._forward_pre_hooks.move_to_end(key, last=False)
                unit._forward_hooks.update(hooks)
            self._free_plain_weights()

    @torch.no_grad()
    def gather(self) -> None:
        """Make the model the plain model again, with all weights. Every process calls it."""
        for unit in self._units:
            unit.reshard()
        for place, shard in self._shards.items():
            self._plain[place].data = whole_tensor(shard).to(self._plain[place].device)
        self.restore()

    def restore(self) -> None:
        """Make the model the plain model again, without its weights unless they were gathered. Nothing is sent."""
        self._install(self._plain, self._plain_classes)
        for unit, (pre_hooks, hooks) in zip(self._units, self._hooks, strict=True):
            for key in pre_hooks:
                unit._forward_pre_hooks.pop(key, None)
            for key in hooks:
                unit._forward_hooks.pop(key, None)

    def release(self) -> None:
        """Make the model one that can be sharded again. Call it last, after `gather` or `restore`."""
        from torch.distributed._composable_state import _module_state_mapping  # torch cannot undo `fully_shard` yet

        for unit in self._units:
            _module_state_mapping.pop(unit, None)
        for module, attributes in self._managed.items():
            for name in set(vars(module)) - attributes:
                if "fsdp" in name or "composable" in name:
                    delattr(module, name)

    def gather_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of an optimizer with whole tensors in main memory. Every process calls it."""
        gathered: dict[str, Any] = _mapped(
            state, lambda value: whole_tensor(value).cpu() if isinstance(value, DTensor) else value
        )
        return gathered

    def shard_state(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return what `gather_state` returned, divided like the weights of an optimizer."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        divided = {
            index: {name: _shard_like(value, weights[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": divided}

    def _install(self, parameters: Mapping[tuple[nn.Module, str], nn.Parameter], classes: list[type]) -> None:
        for (module, name), parameter in parameters.items():
            module._parameters[name] = parameter
        for unit, unit_class in zip(self._units, classes, strict=True):
            unit.__class__ = unit_class

    def _free_plain_weights(self) -> None:
        for place, parameter in self._plain.items():
            if self._shards[place] is not parameter:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def _own_parameters(model: nn.Module) -> dict[tuple[nn.Module, str], nn.Parameter]:
    """Return the weights by their places; tied ones have several."""
    return {
        (module, name): parameter
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def _mapped(value: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(element, convert) for key, element in value.items()}
    if isinstance(value, list):
        return [_mapped(element, convert) for element in value]
    return convert(value)


def _shard_like(value: Any, weight: Tensor) -> Any:
    """Return a tensor of the shape of a weight divided like it; any other value as it is."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    mesh = weight.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, weight.placements).to(weight.device)


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a divided tensor as a whole, on the device of the process; any other one without its history."""
    if not isinstance(tensor, DTensor):
        return tensor.data
    return cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()


@torch.no_grad()
def clip_shards(weights: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of divided weights such that their norm over all processes is at most `max_norm`.

    Args:
        weights: The weights; those without a gradient are skipped.
        max_norm: The largest norm.

    Returns:
        The norm before, on the device of the process.
    """
    gradients = [cast(DTensor, weight.grad) for weight in weights if weight.grad is not None]
    device = gradients[0].device_mesh.device_type
    parts = [gradient.to_local() for gradient in gradients]
    square = torch.stack([part.float().square().sum() for part in parts]).sum().to(device)
    torch.distributed.all_reduce(square)
    norm = square.sqrt()
    factor = float((max_norm / (norm + 1e-6)).clamp(max=1.0))
    for part in parts:
        part.mul_(factor)
    return norm


@contextmanager
def sharded_weights(model: nn.Module, settings: Mapping[str, Any], processes: int) -> Iterator[ShardedWeights | None]:
    """Divide the weights of a model among the processes for the duration of the context.

    Args:
        model: The model, with the same weights in every process; it has all of them again at the end, unless an error
            ends the context: then the weights are lost, since another process may not be there to send its part.
        settings: The stage's `train`.
        processes: The number of processes.

    Yields:
        The weights; None if they are not divided.
    """
    if settings.get("sharding") is None:
        yield None
        return
    if processes == 1:
        warnings.warn(f"{WHERE} has no effect in one process: start several with --gpus N", stacklevel=3)
        yield None
        return
    shards = ShardedWeights(model, offload=settings.get("offload_shards", False))
    try:
        yield shards
    except BaseException:
        shards.restore()
        shards.release()
        raise
    shards.gather()
    shards.release()


def gathered_for(
    callback: Callable[[int], bool], shards: ShardedWeights, steps: Collection[int] | None
) -> Callable[[int], bool]:
    """Return `callback` such that it finds the plain model.

    Args:
        callback: Called with a step in every process.
        shards: The weights.
        steps: The steps after which it uses the weights; None: all.
    """

    def gathered_callback(step: int) -> bool:
        if steps is not None and step not in steps:
            return callback(step)
        with shards.gathered():
            return callback(step)

    return gathered_callback
