"""Texts in, texts out: completing prompts with a policy, outside any task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents.policy import TextPolicy
from agents.rollout import Collector
from textgen_env import Prompt, TextGenVectorEnv, TextMDP, TextTask, TextTokenizer
from textgen_env.types import AllowedTokens

_ROWS = 64


def generate(
    policy: TextPolicy,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    greedy: bool = False,
    seed: int | None = None,
) -> list[str]:
    """Complete ``prompts`` as an agent would in training: an MDP made for the occasion, whose reward is not asked.

    Tokens that the model's own generation config suppresses (control tokens, say) are forbidden.

    Args:
        policy: the policy that acts.
        tokenizer: the one the policy learned with.
        prompts: the texts to continue.
        max_new_tokens: the length cap.
        greedy: the most likely token each time, instead of sampling at the policy's temperature.
        seed: seeds the sampling.

    Raises:
        TypeError: one text instead of a list.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of texts, not one text: generate([text])")
    if not prompts:
        return []
    mdp = TextMDP(
        TextTask("generate", {"train": tuple(Prompt(prompt) for prompt in prompts)}),
        _no_reward,
        tokenizer,
        max_new_tokens=max_new_tokens,
        allowed_tokens=_unsuppressed(policy),
    )
    rows = min(len(prompts), _ROWS)
    env = TextGenVectorEnv(rows, mdp=mdp, autoreset_mode="Disabled", defer_scoring=True)
    episodes = Collector(env, policy, seed=seed).collect(
        len(prompts), prompt_indices=range(len(prompts)), greedy=greedy
    )
    assert episodes is not None  # nobody abandons it
    return [completion.text for completion in episodes.completions]


def _no_reward(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def _unsuppressed(policy: TextPolicy) -> AllowedTokens | None:
    """All tokens but the ``suppress_tokens`` of the model's generation config; None where it has none."""
    suppressed = getattr(getattr(policy.model, "generation_config", None), "suppress_tokens", None)
    if not suppressed:
        return None
    allowed = [token for token in range(policy.vocab_size) if token not in suppressed]
    return lambda prompt, actions, tokenizer: allowed
