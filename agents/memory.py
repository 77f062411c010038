"""How many tokens of an update fit in a GPU's memory: a formula from the model's shape, rough and on the safe side.

A guess that was too high costs one repeated micro-batch (`agents.micro_batches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from agents.policy import TextPolicy

DEFAULT_TOKENS = 16_384
"""In one forward, where nothing is known of the memory (on a CPU)."""

_SHARE = 0.8
"""Of the free memory: the rest is for the allocator's gaps and the kernels' workspaces."""
_BETWEEN = 2
"""What a layer keeps to what goes through its matrices; measured: 1.1 (Llama) to 1.9 (GPT-2 in bf16)."""
_SOFTMAX = 5 * 4
"""Bytes a logit: itself, its softmax, and what the gradients of both and of the entropy make, in float32."""


def tokens_that_fit(
    free_bytes: int,
    *,
    reserved_bytes: int,
    layer_values: Sequence[int],
    width: int,
    value_bytes: int,
    recompute: bool,
    logits: int = 0,
) -> int:
    """The most tokens of one forward and its backward.

    A token keeps what goes into and comes out of each of a layer's matrices, and as much again for what is between
    them. Recomputed layers keep the token's hidden state alone, in float32, and one of them at a time everything.

    Args:
        free_bytes: of the device; four fifths of them are used.
        reserved_bytes: wanted for what does not grow with the tokens.
        layer_values: of each layer, the sum of rows and columns of its matrices.
        width: of the hidden states.
        value_bytes: of an activation.
        recompute: whether layers are run again in the backward pass.
        logits: of a token, where they are not made some rows at a time.

    >>> layers = [16 * 768] * 12  # GPT-2: 768 → 3 · 768, 768 → 768, 768 → 4 · 768, 4 · 768 → 768
    >>> options = {"reserved_bytes": 4 * 2**30, "layer_values": layers, "width": 768, "value_bytes": 4}
    >>> [tokens_that_fit(24 * 2**30, **options, recompute=recompute) for recompute in (False, True)]
    [13835, 120745]
    """
    kept = _BETWEEN * value_bytes * (max(layer_values) if recompute else sum(layer_values))
    if recompute:
        kept += 4 * width * len(layer_values)
    kept += _SOFTMAX * logits
    return max(1, int((_SHARE * free_bytes - reserved_bytes) / kept))


def tokens_for(policy: TextPolicy) -> int:
    """`tokens_that_fit` of a policy where it is now; `DEFAULT_TOKENS` where it is not on a GPU."""
    if policy.device.type != "cuda":
        return DEFAULT_TOKENS
    free, _ = torch.cuda.mem_get_info(policy.device)
    held = torch.cuda.memory_reserved(policy.device) - torch.cuda.memory_allocated(policy.device)
    return tokens_that_fit(free + held, **shape_of(policy))


def shape_of(policy: TextPolicy) -> dict[str, Any]:
    """What `tokens_that_fit` asks of a policy."""
    layers: list[nn.Module] = [
        module for module in policy.model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    matrices = [[weight for weight in layer.parameters() if weight.dim() == 2] for layer in layers or [policy.model]]
    bf16 = policy.precision == "bf16"
    in_chunks = policy.head_to_chunk() is not None
    weight = policy.model.get_output_embeddings().weight
    return {
        "reserved_bytes": _still_to_come(policy) + (policy.most_logits * _SOFTMAX if in_chunks else 0),
        "logits": 0 if in_chunks else policy.vocab_size,
        "layer_values": [sum(sum(weight.shape) for weight in weights) for weights in matrices],
        "width": policy.value_head.in_features,
        "value_bytes": 2 if bf16 else weight.element_size(),
        "recompute": policy.gradient_checkpointing,
    }


def _still_to_come(policy: TextPolicy) -> int:
    """Bytes of the gradients and of Adam's two moments that are not there yet, and of the weights cast to bf16."""
    optimiser = policy.__dict__.get("optimizer")
    size = 0
    for weight in policy.parameters():
        if weight.requires_grad:
            moments = 0 if optimiser is not None and optimiser.state.get(weight) else 2
            size += weight.nbytes * (moments + (weight.grad is None))
        if policy.precision == "bf16":
            size += 2 * weight.numel()
    return size
