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
    """One layer's keys and values, (slots, heads, capacity, head_dim) each: what a head reads is contiguous."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def allocate(self, slots: int, capacity: int, key_states: Tensor, value_states: Tensor) -> None:
        heads = key_states.shape[1]
        # Rotary positions make float32 of bf16 keys, and autocast's attention bf16 of them again: at every token.
        kind = key_states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else key_states.dtype
        # Zeros, not garbage: a masked NaN would still be NaN times 0.
        self.keys = key_states.new_zeros((slots, heads, capacity, key_states.shape[-1]), dtype=dtype)
        self.values = value_states.new_zeros((slots, heads, capacity, value_states.shape[-1]), dtype=dtype)
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
        self._slots_M = self._columns_ML = torch.zeros(0, dtype=torch.long)
        self._write_at: dict[int, Tensor] = {}
        self._read: tuple[int, int] | None = None
        self._column: int | None = None

    def prefill(self, slots_M: Tensor, length: int) -> None:
        """The next forward holds M fresh rows of ``length`` tokens (right-padded), bound for ``slots_M``."""
        self._slots_M = slots_M
        self._columns_ML = torch.arange(length, device=slots_M.device).expand(len(slots_M), -1)
        self._write_at, self._read, self._column = {}, None, None

    def decode(self, positions_N: Tensor, span: int, *, alike: bool = False) -> None:
        """The next forward holds one token each of the rows 0..N-1, at ``positions_N``, all below ``span``.

        ``alike`` says that all stand at ``span - 1``: a whole column is then written at once.
        """
        self._column = span - 1 if alike else None
        self._slots_M = torch.arange(len(positions_N), device=positions_N.device)
        self._columns_ML = positions_N[:, None]
        self._write_at, self._read = {}, (len(positions_N), span)

    def copy_slots(self, sources_M: Tensor, targets_M: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of some slots to others (a shared prompt, or a row that moves up)."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[targets_M, :, :length] = states[sources_M, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new (rows, heads, tokens, head_dim) states; return those that attention may look at."""
        while len(self.layers) <= layer_idx:
            self.layers.append(_SlotLayer())
        layer = self.layers[layer_idx]
        if not layer.is_initialized:
            layer.allocate(self.num_slots, self.capacity, key_states, value_states)
        for states, new in ((layer.keys, key_states), (layer.values, value_states)):
            if self._column is not None:
                states[: len(new), :, self._column] = new[:, :, 0]
            else:
                places, width = self._places(states.shape[1]), states.shape[-1]
                states.view(-1, width).index_copy_(0, places, new.reshape(-1, width).to(states.dtype))
        if self._read is None:  # a prefill attends to itself alone
            return key_states, value_states
        rows, span = self._read
        return layer.keys[:rows, :, :span], layer.values[:rows, :, :span]

    def _places(self, heads: int) -> Tensor:
        """Where the new states go in the flattened (slots, heads, capacity); the same for all layers of a forward."""
        if heads not in self._write_at:
            each_head = torch.arange(heads, device=self._slots_M.device)[:, None]
            starts_MH1 = (self._slots_M[:, None, None] * heads + each_head) * self.capacity
            self._write_at[heads] = (starts_MH1 + self._columns_ML[:, None, :]).reshape(-1)
        return self._write_at[heads]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that stand before the next forward's: none in a prefill, all but one of the span in a decode step."""
        return 0 if self._read is None else self._read[1] - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that the next forward looks at, and the position of the first: for transformers' own masks."""
        return self.get_seq_length() + query_length, 0


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
