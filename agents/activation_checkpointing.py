"""Trading time for memory: activations recomputed in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextlib.contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Within the context each transformer layer keeps only its input, and is run again for its gradients.

    transformers recomputes in training mode alone, which turns dropout on: several architectures (OPT, Falcon) apply
    it by the layer's own flag, so that not even the layer alone may be put in that mode. Here its forward is wrapped.

    Raises:
        ValueError: the architecture has no layers that transformers can recompute.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no layers that can be recomputed: leave gradient_checkpointing off"
        )
    replaced = [vars(layer).get("forward") for layer in layers]  # a wrapper of somebody else's, put back afterwards
    for layer in layers:  # nothing is drawn inside, so no generator has to be put back
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, replaced, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
