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

    transformers recomputes in training mode alone, which would turn dropout on. Here only the layer's own flag is
    raised: the modules inside, dropout among them, stay in eval mode.

    Raises:
        ValueError: the architecture has no layers that transformers can recompute.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no layers that can be recomputed: leave gradient_checkpointing off"
        )
    run_again = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn inside
    for layer in layers:
        layer._gradient_checkpointing_func = run_again  # type: ignore[assignment]
        layer.gradient_checkpointing = layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False
