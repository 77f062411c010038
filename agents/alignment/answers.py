"""What the models of an alignment report write, and what scorers say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from agents.policy import TextPolicy
from agents.rollout import Collector
from agents.trajectories import Trajectories
from textgen_env import Completion, Prompt, Reward, TextGenVectorEnv, TextMDP

Array: TypeAlias = npt.NDArray[np.float64]

_ROWS = 64


@dataclass(frozen=True)
class Side:
    """One of the models: what acts, and the rules it acts under (the report's prompts, its own tokenizer)."""

    name: str
    policy: TextPolicy
    mdp: TextMDP


def play(side: Side, prompt_indices: Sequence[int], samples_per_prompt: int, seed: int) -> Trajectories:
    """Sampled completions of some prompts, those of one prompt next to each other."""
    episodes = len(prompt_indices) * samples_per_prompt
    env = TextGenVectorEnv(
        min(episodes, _ROWS),
        mdp=side.mdp.with_reward(UNSCORED),
        autoreset_mode="Disabled",
        defer_scoring=True,
    )
    played = Collector(env, side.policy, seed=seed).collect(
        episodes, samples_per_prompt=samples_per_prompt, prompt_indices=list(prompt_indices)
    )
    assert played is not None  # nobody abandons it
    return played


def _no_reward(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


UNSCORED = Reward(_no_reward, name="unscored")


def returns(mdp: TextMDP, reward: Reward, completions: Sequence[Completion]) -> Array:
    """What a scorer says of finished completions, shape (B,)."""
    scores: Array = mdp.with_reward(reward.frozen()).returns(completions)
    return scores


def written(mdp: TextMDP, prompt: Prompt, text: str) -> Completion:
    """A text that somebody else wrote, as a completion; however long it is."""
    ids = tuple(mdp.tokenizer.encode_completion(prompt.text, text).tolist())
    return Completion(prompt, text, ids, "eos", mdp.tokenizer.decode)


def positions(side: Side) -> int | None:
    """How many tokens the model can read; None where its config does not say."""
    found: int | None = getattr(side.policy.model.config.get_text_config(), "max_position_embeddings", None)
    return found


def same_tokens(first: Side, second: Side) -> bool:
    """Whether two models speak the same tokens, so that their probabilities can be compared one by one."""
    vocabularies = [side.mdp.tokenizer.hf.get_vocab() for side in (first, second)]
    return vocabularies[0] == vocabularies[1] and first.policy.vocab_size == second.policy.vocab_size


@dataclass(frozen=True)
class Answers:
    """What one side wrote, and what the scorers say of it."""

    played: Trajectories
    texts: list[str]
    prompts: list[str]
    scores: dict[str, Array]

    @classmethod
    def of(cls, side: Side, played: Trajectories, scorers: Mapping[str, Reward]) -> Answers:
        """The scorers are asked now."""
        completions = played.completions
        scores = {name: returns(side.mdp, reward, completions) for name, reward in scorers.items()}
        texts, prompts = [one.text for one in completions], [one.prompt.text for one in completions]
        return cls(played, texts, prompts, scores)


def reference_answers(
    reference: Side,
    chosen: Sequence[int],
    samples_per_prompt: int,
    best_of: int,
    scorers: Mapping[str, Reward],
    paid: str | None,
    seed: int,
) -> tuple[Answers, Array | None]:
    """The reference's answers, and the rewards of all its draws, shape (P, N), where best-of-n is asked for."""
    draws = max(samples_per_prompt, best_of)
    pool = play(reference, chosen, draws, seed)
    rows_PN = np.arange(len(pool)).reshape(-1, draws)
    answers = Answers.of(reference, pool.select(rows_PN[:, :samples_per_prompt].reshape(-1).tolist()), scorers)
    if paid is None or best_of == 1:
        return answers, None
    return answers, returns(reference.mdp, scorers[paid], pool.completions).reshape(-1, draws)
