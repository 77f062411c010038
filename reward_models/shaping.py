"""When a reward is paid: spread over the tokens, or prepared for by a potential that leaves the optimum where it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reward_models.composite import Composition, WeightedSum, formula
from textgen_env.reward import Judgement, RewardError
from textgen_env.reward_registry import resolve_reward
from textgen_env.types import Completion


class Spread(Composition):
    """A reward's total in equal shares on the tokens of the finished text, or on some of them.

    It is known at the end only: a learner that takes whole episodes with their per-token rewards gets the shares, a
    step-by-step loop their sum with the last token. In a sum with a dense reward it is paid on the last token.

    Args:
        reward: anything `resolve_reward` takes; a dense one is asked at the end alone.
        at: token ids to pay on (those that end a sentence, say), besides the last token, which always gets a share.
            None pays on every token, ``()`` all on the last.
        name: what to call the whole; default: its formula.

    >>> Spread("rouge_l", at=[13])
    Spread(rouge_l, at=[13])
    """

    def __init__(self, reward: Any, *, at: Collection[int] | None = None, name: str | None = None) -> None:
        self.at = None if at is None else frozenset(int(token) for token in at)
        part = resolve_reward(reward)
        super().__init__([part], name)
        self.bounds = part.bounds

    def __repr__(self) -> str:
        return f"Spread({formula(self.parts[0])}" + (")" if self.at is None else f", at={sorted(self.at)})")

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """Ask the reward, and pay its totals elsewhere."""
        found = self.parts[0].judge(completions)
        token_rewards = [
            np.where(paid, total / paid.sum(), np.nan if np.isnan(total) else 0.0)
            for total, paid in zip(found.totals, map(self._paid_tokens, completions), strict=True)
        ]
        return Judgement(token_rewards, found.valid, found.components)

    def _paid_tokens(self, completion: Completion) -> npt.NDArray[np.bool_]:
        """Shape (T,): True where a share is paid."""
        paid = np.array([self.at is None or token in self.at for token in completion.token_ids])
        paid[-1] = True
        return paid


class PotentialShaping(WeightedSum):
    """``reward`` plus ``F_t = γ·Φ(s_{t+1}) − Φ(s_t)``, a dense hint that leaves the optimal policy where it is.

    Ng, Harada & Russell (1999, theorem 1), for episodes: Φ counts as 0 before the first token and after the last. The
    discounted sum of ``F_t`` over an episode is then 0, so every completion keeps its return, hence the optimum and
    all rankings; the learner only hears earlier. The whole potential is handed back with the last token.

    Args:
        reward: anything `resolve_reward` takes.
        potential: how good the text so far is: a reward function as any other, one number a text, asked about growing
            texts (``stop_reasons`` is None). Best where an empty text is worth 0.
        gamma: the learner's discount; with another one the optimum may move.
        name: what to call the whole; default: its formula.

    Raises:
        RewardError: ``gamma`` is not in (0, 1], or the potential is dense; when scoring, the potential does not apply
            to a prefix.

    >>> def coverage(completions, references):
    ...     return [len(set(text.split()) & set(known[0].split())) for text, known in zip(completions, references)]
    >>> PotentialShaping("rouge_l", coverage)
    rouge_l + shaping(coverage)
    """

    def __init__(self, reward: Any, potential: Any, *, gamma: float = 1.0, name: str | None = None) -> None:
        super().__init__([(1.0, reward), (1.0, PotentialDifference(potential, gamma=gamma))], name=name)


class PotentialDifference(Composition):
    """``F_t = γ·Φ(s_{t+1}) − Φ(s_t)`` alone, with Φ = 0 before the first token and after the last.

    Its component's ``raw`` is Φ before the last token; ``weighted`` is the undiscounted sum of F, which is 0 at γ = 1.
    Of a growing text only the newest token's reward is worked out, as nothing else is paid.

    Args, Raises: as `PotentialShaping`.
    """

    def __init__(self, potential: Any, *, gamma: float = 1.0, name: str | None = None) -> None:
        part = resolve_reward(potential)
        if part.kind == "dense":
            raise RewardError(
                f"the potential '{part.name}' is dense: give a function with one number for a text so far"
            )
        if not 0.0 < gamma <= 1.0:
            raise RewardError(f"gamma must lie in (0, 1], got {gamma}")
        self.gamma = gamma
        super().__init__([part], name)
        self.kind = "dense"
        self.bounds = (0.0, 0.0) if gamma == 1.0 else None

    def __repr__(self) -> str:
        return f"shaping({formula(self.parts[0])}" + (")" if self.gamma == 1.0 else f", gamma={self.gamma:g})")

    @property
    def component_names(self) -> tuple[str, ...]:
        """One, for the difference; the parts of a composed potential are not reported."""
        return (self.name,)

    def judge(self, completions: Sequence[Completion]) -> Judgement:
        """Ask for the potentials of all the prefixes that are needed, in one call."""
        needed = [_prefixes(completion) for completion in completions]
        values = iter(self._potentials([prefix for prefixes in needed for prefix in prefixes]))
        token_rewards, before_last = [], np.zeros(len(completions))
        for row, (completion, prefixes) in enumerate(zip(completions, needed, strict=True)):
            potentials = np.array([next(values) for _ in prefixes])
            before_last[row] = potentials[-1] if len(potentials) else 0.0
            states = np.zeros(len(completion.token_ids) + 1)  # Φ(s_0) = 0, …, Φ(s_T), which is 0 at the end
            if completion.stop_reason is None:
                states[-len(potentials) :] = potentials
            else:
                states[1:-1] = potentials
            rewards = self.gamma * states[1:] - states[:-1]
            if completion.stop_reason is None:
                rewards[:-1] = 0.0
            token_rewards.append(rewards)
        paid = np.array([rewards.sum() for rewards in token_rewards])
        told = {"raw": before_last, "normalised": paid, "weighted": paid.copy()}
        return Judgement(token_rewards, np.ones(len(completions), dtype=np.bool_), {self.name: told})

    def _potentials(self, prefixes: list[Completion]) -> npt.NDArray[np.float64]:
        potential = self.parts[0]
        found = potential.judge(prefixes)
        for index in np.flatnonzero(~found.valid):
            raise RewardError(
                f"the potential '{potential.name}' returned None for the text so far "
                f"{prefixes[int(index)].text!r:.200}: it must have a value for every text"
            )
        return found.totals


def _prefixes(completion: Completion) -> list[Completion]:
    """The growing texts whose potentials count: all of a finished text, the last two of one that grows."""
    length = len(completion.token_ids)
    if completion.stop_reason is not None:
        return [completion.prefix(at) for at in range(1, length)]
    return [*([completion.prefix(length - 1)] if length > 1 else []), completion]
