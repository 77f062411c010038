"""What every token of a text looks at: the attention weights of every layer and head, and their rollout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from agents.credit import token_texts
from textgen_env import TextTokenizer

Array: TypeAlias = npt.NDArray[np.float32]

MOST_WEIGHTS = 4_000_000
"""Of a page, which holds a byte for each: a text of 166 tokens under GPT-2's 12 layers of 12 heads."""


@dataclass(frozen=True)
class TextAttention:
    """The attention of one text; L layers, H heads, S tokens. Rows sum to 1, and nothing looks ahead."""

    tokens: tuple[str, ...]
    """What each token adds to the text; empty where it is part of a character that a later one completes."""
    written: int
    """How many of the last tokens the model wrote itself."""
    weights_LHSS: Array
    """``[l, h, i, j]``: how much head h of layer l, at token i, takes from token j."""

    @property
    def rollout_SS(self) -> Array:
        """See `rollout`."""
        return rollout(self.weights_LHSS)


def rollout(weights_LHSS: Array) -> Array:
    """Attention rollout: how much of token j's input has come to token i in the last layer, shape (S, S).

    ``R = Ã_L … Ã_1`` with ``Ã_l = (mean over heads of A_l + I)/2``: the residual stream is taken to carry one half past
    each layer (Abnar and Zuidema, 2020, section 3). Values, MLPs and norms are left out. Rows sum to 1.
    """
    size = weights_LHSS.shape[-1]
    total_SS = np.eye(size, dtype=np.float32)
    for mean_SS in weights_LHSS.mean(1):
        total_SS = (mean_SS + np.eye(size, dtype=np.float32)) / 2 @ total_SS
    return total_SS


@torch.no_grad()
def attention(
    model: PreTrainedModel, tokenizer: TextTokenizer, token_ids: Sequence[int], *, written: int = 0
) -> TextAttention:
    """The attention weights of a causal language model on one text. The model is left as it was.

    Args:
        model: the language model, also one of peft's.
        tokenizer: the one it speaks.
        token_ids: the S tokens.
        written: how many of the last ones the model wrote itself.

    Raises:
        ValueError: the text is longer than the model has positions for, or than a page can show; or the model gives no
            attention weights (a layer without attention, say).
    """
    text_config = model.config.get_text_config()
    _check_length(text_config, len(token_ids))
    with _eager(model):
        output = model(
            input_ids=torch.tensor([list(token_ids)], device=model.get_output_embeddings().weight.device),
            attention_mask=torch.ones((1, len(token_ids)), dtype=torch.long, device=model.device),
            output_attentions=True,
            use_cache=False,
        )
    layers = output.attentions
    if not layers or any(layer is None for layer in layers):
        raise ValueError(f"{type(model).__name__} gives no attention weights: not all of its layers attend")
    weights_LHSS = torch.stack([layer[0].float().cpu() for layer in layers]).numpy()
    return TextAttention(tuple(token_texts(tokenizer, list(token_ids))), written, weights_LHSS)


def _check_length(config: Any, length: int) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(f"the text has {length} tokens, the model {positions} positions: shorten the text")
    maps = config.num_hidden_layers * config.num_attention_heads
    most = int((MOST_WEIGHTS / maps) ** 0.5)
    if length > most:
        raise ValueError(
            f"the text has {length} tokens: of {config.num_hidden_layers} layers with {config.num_attention_heads} "
            f"heads a page can show {most}; shorten the text"
        )


@contextlib.contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Eager attention, the only implementation that hands its weights out."""
    wrapped: Any = model
    base = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


# ---------------------------------------------------------------- what a head does


@dataclass(frozen=True)
class Head:
    """Where a head looks on the average over the tokens from the second on (the first one can only look at itself)."""

    layer: int
    """From 1."""
    head: int
    """From 1."""
    first: float
    """Share on the first token: where heads put what they do not need (Xiao et al. 2024, "attention sinks")."""
    itself: float
    """Share on the token itself."""
    before: float
    """Share on the token right before it."""
    spread: float
    """exp of the entropy: among how many tokens the weight is spread."""


def heads(found: TextAttention) -> list[Head]:
    """Every head, layer by layer; empty for a text of one token."""
    weights_LHSS, size = found.weights_LHSS, len(found.tokens)
    if size < 2:
        return []
    rows = np.arange(1, size)
    logs = np.log(np.maximum(weights_LHSS, 1e-30))
    spread_LHS = np.exp(-(weights_LHSS * logs).sum(-1))
    return [
        Head(
            layer=layer + 1,
            head=head + 1,
            first=float(own_SS[rows, 0].mean()),
            itself=float(own_SS[rows, rows].mean()),
            before=float(own_SS[rows, rows - 1].mean()),
            spread=float(spread_LHS[layer, head, 1:].mean()),
        )
        for layer, of_layer in enumerate(weights_LHSS)
        for head, own_SS in enumerate(of_layer)
    ]
