"""The noun list of the project: what flows from a task to a reward.

``Prompt -> (episode) -> Completion -> Scores``. Everything here is plain data without torch; the other
rooms hand these values on and never reach into each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from textgen_env.tokenizer import TextTokenizer

StopReason: TypeAlias = Literal["eos", "length"]
"""Why an episode ended: the end-of-sequence action, or ``max_new_tokens`` reached."""

RewardFunction: TypeAlias = Callable[..., Sequence[Any]]
"""A reward plug-in: lists of strings in, one value a completion out.

It is called with keyword arguments only and gets those it names (all of them with ``**kwargs``):
``prompts``, ``completions`` (lists of B strings), ``completion_ids`` (B lists of token ids, the EOS
included where it was emitted), ``references`` (B lists of strings), ``stop_reasons`` (B strings) and one
list a metadata column of the task. It returns B entries, each a float (paid on the last token), an array
of one reward a token, or ``None`` ("does not apply"). It may be ``async``.
"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One item of a task: the text to continue, and what is known about good continuations."""

    text: str
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.references, str):  # it would be read letter by letter
            raise TypeError(f"a prompt's references are a tuple of texts, got the string {self.references!r:.80}")


AllowedTokens: TypeAlias = "Callable[[Prompt, Sequence[int], TextTokenizer], Sequence[int]]"
"""Which tokens may come next: called with the prompt, the actions so far and the tokenizer, it returns their ids."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an episode produced for a prompt."""

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    """The T >= 1 sampled actions (never re-tokenised text), the EOS included where it was emitted."""
    stop_reason: StopReason | None
    """``None`` while the text is still growing (dense rewards are asked about every prefix)."""
    decode: Callable[[Sequence[int]], str] | None = field(default=None, compare=False, repr=False)
    """Token ids to text, as the environment does it. It does not travel with copies and pickles."""

    def prefix(self, length: int) -> Completion:
        """The same completion when it had only ``length`` tokens, 0 <= length < T, and was still growing.

        Raises:
            ValueError: there is no ``decode`` (a completion of the environment has one), or no such prefix.
        """
        if not 0 <= length < len(self.token_ids):
            raise ValueError(f"a completion of {len(self.token_ids)} tokens has no growing prefix of {length}")
        if self.decode is None:
            raise ValueError(
                "the text of a prefix is not known: this completion was made without decode=, or was copied or pickled"
            )
        ids = self.token_ids[:length]
        return Completion(self.prompt, self.decode(ids), ids, None, self.decode)

    def __reduce__(self) -> tuple[Any, ...]:
        # A tokenizer in every info would make the pipes of an asynchronous vector env slow.
        return Completion, (self.prompt, self.text, self.token_ids, self.stop_reason)


Components: TypeAlias = dict[str, dict[str, npt.NDArray[np.float64]]]
"""Reward name -> ``raw`` (what the plug-in said), ``normalised`` (after clipping and normalising, before the weight)
and ``weighted`` (what it paid), each of shape (B,). A part that only reports has paid 0."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A reward's verdict on B completions."""

    token_rewards: list[npt.NDArray[np.float64]]
    """B arrays of shape (T_i,): the reward of every token. A terminal reward stands on the last token."""
    components: Components
    """What each part of the reward said and paid. The weighted values of all names sum to ``totals``."""

    @property
    def totals(self) -> npt.NDArray[np.float64]:
        """Shape (B,): the undiscounted reward of each completion."""
        return np.array([rewards.sum() for rewards in self.token_rewards], dtype=np.float64)

    def info(self, index: int) -> dict[str, dict[str, float]]:
        """The components of one completion, as ``env.step`` reports them in ``info["reward"]``."""
        return {
            name: {kind: float(values[index]) for kind, values in component.items()}
            for name, component in self.components.items()
        }
