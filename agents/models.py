"""A small transformer to start from where there is no pretrained one: GPT-2's architecture, fresh weights."""

from __future__ import annotations

from transformers import GPT2Config

from textgen_env import TextTokenizer


def small_gpt2(
    tokenizer: TextTokenizer, *, positions: int, layers: int = 2, width: int = 128, heads: int = 4
) -> GPT2Config:
    """The configuration of a GPT-2 that fits a tokenizer. The agents draw its weights with their seed.

    Args:
        tokenizer: gives the vocabulary and the EOS and padding ids.
        positions: the longest prompt plus completion, in tokens.
        layers: transformer blocks.
        width: hidden width.
        heads: attention heads.

    Raises:
        ValueError: the width cannot be divided among the heads, or a size is below 1.
    """
    for name, size in (("positions", positions), ("layers", layers), ("width", width), ("heads", heads)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if width % heads:
        raise ValueError(f"width={width} must be a multiple of heads={heads}: each head gets an equal share")
    eos, start = tokenizer.eos_ids[0], tokenizer.hf.bos_token_id
    return GPT2Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own GELU, in one kernel
        # Small data is learned once or twice, then RL follows, which wants none: dropout would only slow it.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos if start is None else start,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_id,
    )
