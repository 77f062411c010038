"""Which objective to pretrain with: its options, the rewards of segments, and the loss of a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agents.config import check_choice, option
from agents.pretraining.documents import Document, Segments
from agents.pretraining.objectives import (
    MAX_WEIGHT,
    advantage_weighted_loss,
    likelihood_loss,
    reward_weighted_loss,
    unlikelihood_loss,
)
from textgen_env import Completion, Prompt
from textgen_env.reward import Reward

Objective: TypeAlias = Literal[
    "likelihood", "filtering", "conditional", "unlikelihood", "reward_weighted", "advantage_weighted"
]
GOOD_TOKEN, BAD_TOKEN = "<|good|>", "<|bad|>"
_CHUNK = 256
_WITH_REWARD = tuple(name for name in get_args(Objective) if name != "likelihood")
_WEIGHTED = ("reward_weighted", "advantage_weighted")
_USED_BY: dict[str, tuple[str, ...]] = {
    "reward": _WITH_REWARD,
    "segments": _WITH_REWARD,
    "threshold": ("filtering", "conditional", "unlikelihood"),
    "drop_control": ("conditional",),
    "unlikelihood_weight": ("unlikelihood",),
    "beta": _WEIGHTED,
    "max_weight": _WEIGHTED,
    "policy_share": ("advantage_weighted",),
}


@dataclass
class ObjectiveConfig:
    """Options of the objective: see `agents.pretraining.objectives` for the formulas."""

    objective: Objective = option(
        "likelihood",
        "likelihood, or one that goes by a reward: filtering, conditional (control tokens), unlikelihood, "
        "reward_weighted, advantage_weighted",
    )
    reward: Any = option(None, "what judges the texts: a name from 'textgen list', 'module:attr', or a folder")
    segments: Segments = option("document", "what is judged: each document, or each sentence")
    threshold: float | None = option(None, "good is a reward of at least this; for filtering, a document's mean")
    drop_control: float = option(
        0.01, "conditional: share of the segments without control token, so that the model can also do without"
    )
    unlikelihood_weight: float = option(1.0, "unlikelihood: α, the weight of bad segments")
    beta: float = option(1.0, "weighted objectives: β; small values trust the reward more")
    max_weight: float = option(MAX_WEIGHT, "weighted objectives: the most a token may weigh")
    policy_share: float = option(0.5, "advantage_weighted: α, the policy's share of the loss; the value has the rest")

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, Objective)
        check_choice("segments", self.segments, Segments)
        for name in ("reward", "threshold"):
            if getattr(self, name) is None and self.objective in _USED_BY[name]:
                raise ValueError(f"the objective '{self.objective}' goes by a {name}: say --{name}")
        for field in fields(self):
            users = _USED_BY.get(field.name, ())
            if users and self.objective not in users and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} has no effect on the objective '{self.objective}': it is for {', '.join(users)}"
                )
        for name in ("beta", "max_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("drop_control", "policy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def loss(self, log_probs_N: Tensor, values_N: Tensor, rewards_N: Tensor, *, count: int) -> Tensor:
        """The loss of N tokens, a part of a batch of ``count``."""
        if self.objective == "unlikelihood":
            assert self.threshold is not None
            return unlikelihood_loss(
                log_probs_N, rewards_N, threshold=self.threshold, alpha=self.unlikelihood_weight, count=count
            )
        if self.objective == "reward_weighted":
            return reward_weighted_loss(log_probs_N, rewards_N, beta=self.beta, max_weight=self.max_weight, count=count)
        if self.objective == "advantage_weighted":
            return advantage_weighted_loss(
                log_probs_N,
                values_N,
                rewards_N,
                beta=self.beta,
                alpha=self.policy_share,
                max_weight=self.max_weight,
                count=count,
            )
        return likelihood_loss(log_probs_N, count=count)


def segment_rewards(
    reward: Reward, documents: Sequence[Document], segments: Sequence[Sequence[str]]
) -> list[list[float]]:
    """The reward of every segment of every document, each judged by itself, with an empty prompt.

    Args:
        reward: gets the texts as completions, and the documents' metadata as columns.
        documents: the documents.
        segments: the texts of each one's segments.

    Raises:
        RewardError: the reward fails on a text, or does not apply to it.
    """
    texts = [
        Completion(Prompt("", (), document.metadata), text, (0,), "eos")
        for document, parts in zip(documents, segments, strict=True)
        for text in parts
    ]
    scores: list[float] = []
    for start in range(0, len(texts), _CHUNK):
        scores += reward.score(texts[start : start + _CHUNK]).totals.tolist()
    totals = iter(scores)
    return [[next(totals) for _ in parts] for parts in segments]


def summary_of_rewards(rewards: Sequence[Sequence[float]]) -> str:
    """How rewards are spread: what a threshold is chosen by."""
    flat: npt.NDArray[np.float64] = np.concatenate([np.asarray(part, dtype=np.float64) for part in rewards])
    low, quarter, half, three_quarters, high = np.quantile(flat, (0, 0.25, 0.5, 0.75, 1))
    return (
        f"{len(flat):,} segments, rewards from {low:.4g} to {high:.4g}, "
        f"quartiles {quarter:.4g}, {half:.4g}, {three_quarters:.4g}"
    )


def check_two_sides(rewards: Sequence[Sequence[float]], threshold: float) -> float:
    """The share of good segments.

    Raises:
        ValueError: it is 0 or 1: the threshold tells nothing apart.
    """
    flat = [reward for part in rewards for reward in part]
    share = sum(reward >= threshold for reward in flat) / len(flat)
    if share in (0.0, 1.0):
        raise ValueError(
            f"no segment is {'good' if not share else 'bad'} at the threshold {threshold:g} "
            f"({summary_of_rewards(rewards)}): choose another one"
        )
    return share


def tokenizer_that_starts(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that puts its EOS before every text, where it puts no start token of its own.

    What is generated after a prompt then stands where it stood in training: after the start of a document.
    """
    copied: Any = copy.deepcopy(tokenizer)
    eos = copied.eos_token
    copied.bos_token = eos
    copied.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{eos} $A", pair=f"{eos} $A $B", special_tokens=[(eos, copied.eos_token_id)]
    )
    return copied


def with_control_vocabulary(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that knows the two control tokens, as special ones: texts are decoded without them."""
    copied: Any = copy.deepcopy(tokenizer)
    copied.add_tokens([GOOD_TOKEN, BAD_TOKEN], special_tokens=True)
    return copied
