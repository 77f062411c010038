# ruff: noqa: D102 (what the methods of Launched do is said where World has them)
"""Several processes that learn as one: which of them this is, and the few things that they tell each other.

Every process (a *rank*) has its own environments, rollouts and generators, and the same weights. What is a sum or a
mean over a rollout is one over all ranks' rollouts; the gradients are summed, each divided beforehand by the number
of tokens of all ranks. Averaging the ranks' own means instead would weigh a token by how few its rank has.

An algorithm asks its `World` and never whether there are others: a world of one answers with what it was given.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T")
Summable = TypeVar("Summable", int, float, Tensor)

PATIENCE = timedelta(hours=3)
"""How long a rank waits for the others: rank 0 evaluates and writes meanwhile. Where one has failed, launchers end
those that wait."""

_BUCKET = 2**25
"""Elements that are sent at once: each costs a copy of so many."""


class WorldError(ValueError):
    """The processes do not form the world that was asked for, or do not fit together."""


class FailedElsewhere(RuntimeError):
    """Rank 0 failed at something that it alone does; it says what."""


class World:
    """One process alone: every sum is its own, nobody waits. With others it is a `Launched`.

    Every method is called by all ranks, in the same order.

    Attributes:
        rank: which process this is, from 0.
        size: how many there are.
    """

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def __str__(self) -> str:
        return "1 process"

    def seed(self, seed: int | None) -> int | None:
        """A rank's own seed: rank 0 has the user's, the others one drawn from it and their rank."""
        if seed is None or self.rank == 0:
            return seed
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1, np.uint64)[0])

    def sum(self, value: Summable) -> Summable:
        """The sum over all ranks of a number, or of a tensor of one shape, without gradients."""
        return value

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over all ranks of each of some numbers; all ranks have the same names."""
        return dict(values)

    def any(self, flag: bool) -> bool:
        """Whether it holds on some rank."""
        return flag

    def max(self, value: int) -> int:
        """The highest of all ranks' numbers."""
        return value

    def concat(self, values_N: Tensor) -> Tensor:
        """All ranks' values one after the other; each may have another N."""
        return values_N

    def gather(self, value: T) -> list[T]:
        """Every rank's value (anything that pickles), by rank."""
        return [value]

    def chain(self, values: list[T]) -> list[T]:
        """All ranks' lists one after the other."""
        return [value for rank in self.gather(values) for value in rank]

    def mean_where_known(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The mean of each number over the ranks that have one of its name."""
        return dict(values)

    def on_main(self, function: Callable[[], T]) -> T:
        """What rank 0 gets by calling ``function``, on all ranks; the others only wait.

        Raises:
            FailedElsewhere: on the others, where rank 0's call raised.
        """
        return function()

    def wait(self) -> None:
        """Until all ranks are here."""

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over all ranks."""

    def broadcast(self, module: nn.Module) -> None:
        """Give all ranks the weights and buffers of rank 0."""

    def check_same(self, module: nn.Module) -> None:
        """Compare the weights, bit by bit.

        Raises:
            WorldError: a rank has others than rank 0; the message names the first.
        """


ALONE = World()
"""The world of one process."""


class Launched(World):
    """The processes of torch's default process group.

    Raises:
        RuntimeError: there is no process group; `join` makes one.
    """

    def __init__(self) -> None:
        self._dist = torch.distributed
        self.rank, self.size = self._dist.get_rank(), self._dist.get_world_size()
        self.backend = str(self._dist.get_backend())
        on_cuda = "nccl" in self.backend
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")

    def __str__(self) -> str:
        return f"{self.size} processes ({self.backend})"

    def sum(self, value: Summable) -> Summable:
        if isinstance(value, Tensor):
            total = value.detach().clone()
            self._dist.all_reduce(total)
            return total
        kind = torch.int64 if isinstance(value, int) else torch.float64
        number = torch.tensor(value, dtype=kind, device=self._device)
        self._dist.all_reduce(number)
        total_number: Any = number.item()
        return total_number

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        row = torch.tensor(list(values.values()), dtype=torch.float64, device=self._device)
        return dict(zip(values, self.sum(row).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        return self.sum(int(flag)) > 0

    def max(self, value: int) -> int:
        return max(self.gather(value))

    def concat(self, values_N: Tensor) -> Tensor:
        return torch.cat([part.to(values_N.device) for part in self.gather(values_N.detach().cpu())])

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        self._dist.all_gather_object(found, value)
        return found

    def mean_where_known(self, values: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float, np.number))}
        found = self.gather(numbers)
        return {
            name: float(np.mean([row[name] for row in found if name in row])) if name in numbers else value
            for name, value in values.items()
        }

    def on_main(self, function: Callable[[], T]) -> T:
        answer: list[Any] = [None, True]
        error: BaseException | None = None
        if self.is_main:
            try:
                answer = [function(), False]
            except BaseException as raised:
                error = raised
        self._dist.broadcast_object_list(answer, src=0)
        if error is not None:
            raise error
        if answer[1]:
            raise FailedElsewhere("rank 0 stopped, and said why")
        result: T = answer[0]
        return result

    def wait(self) -> None:
        self.sum(0)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad and not _is_share(parameter)]
        flags = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=self._device)
        for parameter, holders in zip(trained, self.sum(flags).tolist(), strict=True):
            if holders and parameter.grad is None:  # this rank's episodes did not come past it
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in trained if parameter.grad is not None]):
            _through_one(bucket, self._dist.all_reduce)

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        tensors = [*module.parameters(), *module.buffers()]
        for bucket in _buckets([tensor.data for tensor in tensors if not _is_share(tensor)]):
            _through_one(bucket, lambda flat: self._dist.broadcast(flat, src=0))

    @torch.no_grad()
    def check_same(self, module: nn.Module) -> None:
        own = {name: _digest(value) for name, value in module.named_parameters() if not _is_share(value)}
        for rank, other in enumerate(self.gather(own)):
            for name, digest in own.items():
                if other.get(name) != digest:
                    raise WorldError(
                        f"after an update, '{name}' differs between rank {self.rank} and rank {rank}: the ranks no "
                        "longer learn one policy. Was a weight changed on one rank alone, or do the ranks differ in "
                        "hardware or options? (check_invariants=False turns this check off)"
                    )


def join(device: torch.device | str = "auto") -> World:
    """The world that this process is in: that of torch's process group, or of a launcher, or else its own.

    Under ``torchrun`` and ``accelerate launch`` the first call makes the process group, by ``accelerate``: with NCCL
    where there is a GPU for this rank, with gloo on CPUs. Later calls answer alike.

    Args:
        device: where the agent is to be: "auto", "cpu", "cuda", …

    Raises:
        WorldError: the launcher was asked for several processes and formed a world of one.
        ImportError: there are several, and accelerate is not installed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Launched() if torch.distributed.get_world_size() > 1 else ALONE
    asked = asked_size(os.environ)
    if asked == 1:
        return ALONE
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "training in several processes needs accelerate: pip install 'textgen-env[distributed]'"
        ) from error
    on_cpu = str(device) == "cpu" or (str(device) == "auto" and not torch.cuda.is_available())
    formed = PartialState(cpu=on_cpu, timeout=PATIENCE).num_processes
    if formed != asked:
        raise WorldError(
            f"the launcher asked for {asked} processes, but the world that was formed has {formed}: start them with "
            f"torchrun --nproc-per-node {asked} -m agents ..."
        )
    return Launched()


def leave() -> None:
    """Take the process group down, where there is one: the last thing that a process does."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def asked_size(environment: Mapping[str, str]) -> int:
    """How many processes the launcher of this one was asked for, by the variables that launchers set.

    Args:
        environment: the process's variables.

    Raises:
        WorldError: there should be several, but nobody says which of them this is. ``accelerate launch --cpu
            --num_processes 2`` starts one process so, which would learn alone in silence.
    """
    if "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if int(environment.get(name, 1)) > 1:
            return int(environment[name])
    # accelerate's launcher of one process names a meeting point if, and only if, it was asked for several.
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise WorldError(
            "accelerate launch was asked for several processes but started one (it does so with --cpu): "
            "start them with torchrun --nproc-per-node N -m agents ..."
        )
    return 1


def is_launched() -> bool:
    """Whether a launcher started this process, be it as the only one."""
    return "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, so many that they hold about `_BUCKET` elements."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (not alike or sum(map(torch.numel, bucket)) + tensor.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _through_one(tensors: list[Tensor], collective: Callable[[Tensor], Any]) -> None:
    """Let a collective change some tensors as one."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    collective(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _is_share(tensor: Tensor) -> bool:
    """Of a weight that `agents.sharding` has shared out: ranks differ in it, and its gradient is a sum already."""
    return hasattr(tensor, "full_tensor")


def _digest(weights: Tensor) -> bytes:
    return hashlib.blake2b(weights.detach().cpu().reshape(-1).view(torch.uint8).numpy().data).digest()
