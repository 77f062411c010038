"""torch.compile for a model's layers: the update's forward, and what follows from it in the backward pass."""

from __future__ import annotations

import contextlib
import functools
import logging
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class Compilation:
    """Runs models with compiled layers, until one cannot be compiled: then all goes on without.

    The layers alone, which is where the time goes: one of a kind is compiled for all of them, and what is around them
    (gradient checkpointing, the head, which gets chosen rows only) stays as it is.

    Args:
        backend: of torch.compile.

    Attributes:
        works: False once a layer could not be compiled.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.works = True
        self._forward = torch.compile(_forward, backend=backend)

    def __deepcopy__(self, _memo: Any) -> Compilation:
        """Copies of a model share what was compiled for it."""
        return self

    def run(self, model: nn.Module, call: Callable[[], T]) -> T:
        """``call()``, which calls ``model``."""
        if not self.works:
            return call()
        from torch._dynamo.exc import TorchDynamoException  # a second's import, for those who compile

        try:
            with self._compiled(model):
                return call()
        except TorchDynamoException as error:
            self.works = False
            _LOG.warning(
                "torch.compile failed (%s: %s): going on without it; compile=False leaves it out",
                type(error).__name__,
                textwrap.shorten(str(error), 300),
            )
        return call()

    @contextlib.contextmanager
    def _compiled(self, model: nn.Module) -> Iterator[None]:
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        layers = [layer for layer in layers if "forward" not in vars(layer)]  # somebody else's wrapper stays
        for layer in layers:
            layer.forward = functools.partial(self._forward, layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)
