"""What a language model makes of blocks of text: log-probabilities, and perplexity in units that compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from agents.micro_batches import MicroBatches
from agents.packing import Places
from agents.policy import TextPolicy
from agents.pretraining.blocks import Batch, Blocks, Controls
from agents.training_loop import LoopConfig


def predictions(policy: TextPolicy, batch: Batch) -> tuple[Tensor, Tensor]:
    """log π of each target of a batch, and the value before it, (N,) each, with gradients."""
    places = Places(batch.input_ids_BS, batch.positions_BS, batch.attention_mask, batch.select_N)
    log_probs_N, values_N, _ = policy.score_places(places, batch.targets_N, with_entropy=False)
    return log_probs_N, values_N


@torch.no_grad()
def text_figures(
    policy: TextPolicy,
    blocks: Blocks,
    texts: Sequence[str],
    controls: Controls | None = None,
    config: LoopConfig | None = None,
) -> dict[str, float]:
    """How well a model predicts texts.

    The end of each text counts as one of its tokens. Control tokens are given, not predicted: they count nowhere.

    Args:
        policy: the model.
        blocks: the texts' own blocks.
        texts: the texts; figures by byte and by character do not depend on the tokenizer.
        controls: the control tokens, where the blocks have some.
        config: says how many tokens a forward has (``micro_batch_tokens``).

    Returns:
        ``nats_per_token``; ``perplexity``, its exponential; ``perplexity_per_byte`` and ``bits_per_byte`` (UTF-8);
        ``perplexity_per_character``.
    """
    parts: list[tuple[float, int]] = []

    def measure(_rows: Tensor, part: Blocks) -> None:
        batch = part.batch(policy.device)
        log_probs_N, _ = predictions(policy, batch)
        if controls is not None:
            log_probs_N = log_probs_N[(batch.targets_N != controls.good) & (batch.targets_N != controls.bad)]
        parts.append((-float(log_probs_N.double().sum()), len(log_probs_N)))

    MicroBatches(policy, config or LoopConfig()).each(blocks, measure, begin=parts.clear)
    nats, tokens = map(sum, zip(*parts, strict=True))
    by_byte = nats / sum(len(text.encode("utf-8")) for text in texts)
    return {
        "nats_per_token": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "bits_per_byte": by_byte / math.log(2),
        "perplexity_per_byte": math.exp(by_byte),
        "perplexity_per_character": math.exp(nats / sum(map(len, texts))),
    }


def described(row: Mapping[str, float]) -> str:
    """A validation on a line."""
    return (
        f"step {row['step']:,}, perplexity {row['perplexity']:.2f} a token, "
        f"{row['perplexity_per_character']:.3f} a character, {row['bits_per_byte']:.3f} bits a byte"
    )
