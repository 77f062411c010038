"""What `benchmarks.gpu` will take, said before it starts: counted work over rates that are guesses."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.workload import Workload

SECTIONS = ("decode", "token-step", "iteration", "update", "host", "log-probs", "exactness")

_FLOPS = 1e14
"""Operations a second, in the middle of what large and small products reach."""
_LAYER_SECONDS = 1e-3
"""Of launching one layer's operations one by one: what ``generate()`` takes a token."""
_DRAWN = 5e7
"""Weights a second, drawn on one core."""
_PROCESS = 20.0
"""Seconds until a new process has its libraries and the device."""


def num_weights(sizes: Workload) -> int:
    """Matrices of a shape, the tied head once; biases and norms left out."""
    inner = sizes.inner or 4 * sizes.width
    kv_width = (sizes.kv_heads or sizes.heads) * (sizes.width // sizes.heads)
    attention = 2 * sizes.width * (sizes.width + kv_width)
    forward = (3 if sizes.family == "llama" else 2) * sizes.width * inner
    return sizes.layers * (attention + forward) + sizes.vocab_size * sizes.width


def estimated_seconds(sizes: Workload, sections: Iterable[str], repeats: int) -> float:
    """Of some sections at one size; a guess within a factor of two or three."""
    weights, turns = num_weights(sizes), repeats + 1
    length = sizes.prompt_tokens + sizes.new_tokens
    draw = weights / _DRAWN
    forward = 2 * weights * sizes.rows * length / _FLOPS
    slow_decode = sizes.new_tokens * sizes.layers * _LAYER_SECONDS
    decode = slow_decode / 5
    # SB3 reads the whole prefix at a quarter of the steps, in float32, and learns from every one of them.
    sb3 = _PROCESS + draw + (1 + 3) * 4 * forward * sizes.new_tokens / 4 if sizes.family == "gpt2" else 0.0
    update = 3 * forward
    seconds = {
        "decode": turns * (decode + slow_decode),
        "token-step": turns * 2 * decode,
        "iteration": 2 * _PROCESS + 3 * draw + turns * (slow_decode + decode + 3 * sizes.epochs * update) + sb3,
        "update": turns * update,
        "host": turns * 2 * decode,
        "log-probs": 0.0,
        "exactness": 4 * (slow_decode + 4 * forward),
    }
    return sum(draw / 10 + 3 + seconds[name] for name in sections)
