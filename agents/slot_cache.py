"""The KV cache is the policy's recurrent state: one slot a row, every row with a length of its own.

A plain cache grows all rows in step, so a batch lasts as long as its longest answer. Here every row writes
its next key and value at *its* position, so a row whose episode ended can be given a new prompt while the
others go on (continuous batching), and rows that are done can be dropped from the front-packed batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (slots, capacity, heads * head_dim) each: a token is one contiguous write."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads = 0
        self.head_dims = (0, 0)

    def allocate(self, slots: int, capacity: int, key_states: Tensor, value_states: Tensor) -> None:
        self.heads = key_states.shape[1]
        self.head_dims = (key_states.shape[-1], value_states.shape[-1])
        self.keys = key_states.new_zeros((slots, capacity, self.heads * self.head_dims[0]))
        self.values = value_states.new_zeros((slots, capacity, self.heads * self.head_dims[1]))
        self.is_initialized = True

    # What the abstract class asks for; `SlotCache` answers these questions itself.
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("SlotCache allocates its layers")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("SlotCache writes its layers")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # the same question under the name of earlier transformers


class SlotCache(Cache):
    """A ragged KV cache for any decoder-only Hugging Face model.

    Before each forward the caller says what it is about to write, with `prefill` or `decode`. Keys beyond a
    row's length are never read: the decode mask hides them until they are overwritten.

    Args:
        num_slots: the most rows at once.
        capacity: the most tokens a row.
    """

    layers: list[_SlotLayer]  # type: ignore[assignment]

    def __init__(self, num_slots: int, capacity: int) -> None:
        super().__init__(layer_class_to_replicate=_SlotLayer)
        self.num_slots = num_slots
        self.capacity = capacity
        self._write_at = torch.zeros(0, dtype=torch.long)
        self._read: tuple[int, int] | None = None

    def prefill(self, slots_M: Tensor, length: int) -> None:
        """The next forward holds M fresh rows of ``length`` tokens (right-padded), bound for ``slots_M``."""
        offsets = torch.arange(length, device=slots_M.device)
        self._write_at = (slots_M[:, None] * self.capacity + offsets).reshape(-1)
        self._read = None

    def decode(self, positions_N: Tensor, span: int) -> None:
        """The next forward holds one token each of the rows 0..N-1, at ``positions_N``, all below ``span``."""
        starts = torch.arange(len(positions_N), device=positions_N.device) * self.capacity
        self._write_at = starts + positions_N
        self._read = (len(positions_N), span)

    def copy_slots(self, sources_M: Tensor, targets_M: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of some slots to others (a shared prompt, or a row that moves up)."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[targets_M, :length] = states[sources_M, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new (rows, heads, tokens, head_dim) states; return those that attention may look at."""
        while len(self.layers) <= layer_idx:
            self.layers.append(_SlotLayer())
        layer = self.layers[layer_idx]
        if not layer.is_initialized:
            layer.allocate(self.num_slots, self.capacity, key_states, value_states)
        read = []
        for states, new, dim in ((layer.keys, key_states, 0), (layer.values, value_states, 1)):
            flat = states.view(-1, states.shape[-1])
            flat.index_copy_(0, self._write_at, new.transpose(1, 2).reshape(-1, states.shape[-1]).to(states.dtype))
            if self._read is not None:
                rows, span = self._read
                read.append(states[:rows, :span].unflatten(-1, (layer.heads, layer.head_dims[dim])).transpose(1, 2))
        if self._read is None:  # a prefill attends to itself alone
            return key_states, value_states
        return read[0], read[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: a prefill starts at position 0, and a decode step brings its own positions and mask."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """What transformers needs to build a prefill's causal mask."""
        return query_length, 0


def check_cacheable(model: nn.Module, capacity: int) -> None:
    """Refuse a model that `SlotCache` would decode wrongly.

    Raises:
        ValueError: unsupported attention (with what to load the model with instead), a sliding window shorter
            than the episode, or positions the model does not have.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"the slot cache needs attention with explicit masks, but the model uses '{attention}': "
            "load it with attn_implementation='sdpa' (or 'eager')"
        )
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        raise ValueError(
            f"{config.model_type} adds position biases (ALiBi) to its attention instead of position ids, which the "
            "slot cache does not support: choose a model with learned or rotary positions"
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < capacity:
        raise ValueError(
            f"the model attends to the last {window} tokens only, episodes are up to {capacity} long: "
            f"lower max_prompt_tokens + max_new_tokens to {window}"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < capacity:
        raise ValueError(
            f"the model has {positions} positions, episodes are up to {capacity} tokens long: "
            f"lower max_prompt_tokens + max_new_tokens to {positions}"
        )
