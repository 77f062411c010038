"""Weights, gradients and Adam's averages in shards, one a rank (FSDP, Zhao et al. 2023): for large models.

A policy learns in shards: each transformer block is put together when its turn comes and taken apart behind it. It acts
whole: the ranks' rollouts take different numbers of steps, and a step that waits for the others' weights would wait for
ever. So while it plays, a card holds the weights once, and its share of the gradients and of Adam's two averages.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from agents.distributed import World, WorldError
from agents.policy import TextPolicy


def shard(policy: TextPolicy, world: World) -> None:
    """Leave each rank its share of the policy's weights, in place. All ranks hold the same before.

    Args:
        policy: on its device already, and without an optimiser.
        world: the ranks.

    Raises:
        WorldError: there is nobody to share with, or the model does not say what its blocks are.
    """
    if world.size == 1:
        raise WorldError("shard_weights shares the weights out to several processes: start them with torchrun")
    mesh = torch.distributed.device_mesh.init_device_mesh(policy.device.type, (world.size,))
    names = set(getattr(policy.model, "_no_split_modules", None) or ())
    blocks = [module for module in policy.model.modules() if type(module).__name__ in names]
    if not blocks:
        raise WorldError(f"{type(policy.model).__name__} does not say what its blocks are: leave shard_weights out")
    # Of our outputs, which nobody changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*blocks, policy):
        sharded: Any = fully_shard(module, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)  # the losses are divided by the tokens of all ranks already
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was here."""
    return isinstance(module, FSDPModule)


@contextlib.contextmanager
def whole(*modules: nn.Module | None) -> Iterator[None]:
    """Within it, sharded modules are put together on every rank: forwards without gradients wait for nobody.

    All ranks enter and leave it together. Contexts may be nested; what is not sharded stays as it is.
    """
    parts: list[Any] = [
        part
        for module in modules
        if module is not None
        for part in module.modules()
        if isinstance(part, FSDPModule) and not getattr(part, "_stays_whole", False)
    ]
    for part in parts:
        part._stays_whole = True
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part._stays_whole = False
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def gathered(state: Any) -> Any:
    """A state dict with every shard replaced by the whole tensor, on the CPU; all ranks call it."""
    if isinstance(state, DTensor):
        share: Any = state.detach()
        return share.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(gathered(value) for value in state)
    return state


def load_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a sharded module."""
    own = module.state_dict()
    module.load_state_dict({name: _like(own[name], value) for name, value in state.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load whole tensors into the optimiser of a sharded module."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    shares = {
        number: {
            name: _like(parameters[number], value)
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in of_one.items()
        }
        for number, of_one in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": shares})


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to a norm, sharded or not; returns the norm before, over all shards."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    total: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return total


def save_pretrained(policy: TextPolicy, folder: str | Path, world: World) -> None:
    """`TextPolicy.save_pretrained`, sharded or not; all ranks call it, rank 0 writes."""
    if not is_sharded(policy):
        if world.is_main:
            policy.save_pretrained(folder)
        return
    state = gathered(policy.model.state_dict())
    if world.is_main:
        policy.model.save_pretrained(str(folder), state_dict=state)


def _like(own: Any, value: Tensor) -> Tensor:
    """This rank's share of a whole tensor, as it has that of ``own``."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
