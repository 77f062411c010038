"""Several tasks that one policy can speak: a tokenizer they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from textgen_env import Completion, Prompt, StopReason, TextMDP, TextTokenizer
from textgen_env.mdp import VOCAB_SIZE
from textgen_env.tokenizer import train_tokenizer, word_tokenizer

_MARK = "<{}>"


def share_tokenizer(
    mdps: Mapping[str, TextMDP],
    *,
    tokenizer: TextTokenizer | None = None,
    mark: bool = False,
    vocab_size: int | None = None,
) -> dict[str, TextMDP]:
    """The same tasks under one tokenizer.

    Tasks that all have words of their own get one with the words of all; each keeps its game, see `InSharedWords`.
    Tasks of free text get one that is trained on the training texts of all.

    Args:
        mdps: name -> rules.
        tokenizer: the one to share, of a model say; tasks with words of their own cannot follow.
        mark: begin every prompt with a word for its task; for tasks with words of their own.
        vocab_size: size of the tokenizer trained for free text. Default: 1024.

    Raises:
        ValueError: some tasks have words of their own and others do not, the tokenizer cannot be shared, or two tasks
            ask the same prompts.
    """
    worded = [name for name, mdp in mdps.items() if mdp.task.vocabulary is not None]
    free = [name for name in mdps if name not in worded]
    if worded and (free or tokenizer is not None):
        other = f"{_listed(free)} are free text" if free else "the model has a tokenizer of its own"
        raise ValueError(f"{_listed(worded)} have words of their own, {other}: one policy cannot speak both")
    if worded:
        found = shared_words(mdps, mark)
    else:
        if mark:
            raise ValueError(
                "marks are words, and these tasks are free text: tell them apart by their prompts' template"
            )
        if tokenizer is None:
            texts = [text for mdp in mdps.values() for text in mdp.task.texts("train")]
            tokenizer = TextTokenizer(train_tokenizer(texts, vocab_size or VOCAB_SIZE))
        found = {name: mdp.with_tokenizer(tokenizer) for name, mdp in mdps.items()}
    if not mark:
        _check_distinct(mdps)
    return found


def shared_words(mdps: Mapping[str, TextMDP], mark: bool = False) -> dict[str, TextMDP]:
    """Tasks with words of their own, under one tokenizer with the words of all."""
    marks = [_MARK.format(name) for name in mdps] if mark else []
    words = [word for mdp in mdps.values() for word in mdp.task.vocabulary or ()]
    tokenizer = TextTokenizer(word_tokenizer(dict.fromkeys([*marks, *words])))
    return {name: InSharedWords(mdp, tokenizer, _MARK.format(name) if mark else None) for name, mdp in mdps.items()}


def _check_distinct(mdps: Mapping[str, TextMDP]) -> None:
    """Two tasks that ask the same cannot be told apart: their policy would average the answers."""
    asked: dict[str, str] = {}
    for name, mdp in mdps.items():
        for prompt in mdp.prompts:
            other = asked.setdefault(prompt.text, name)
            if other != name:
                raise ValueError(
                    f"'{other}' and '{name}' both ask {prompt.text!r:.60}, and nothing tells the policy which is "
                    "meant: begin their prompts with a mark (--mark-tasks; share_tokenizer(..., mark=True)), or with "
                    "a template"
                )


class InSharedWords(TextMDP):
    """A task with words of its own, in a vocabulary that has more.

    The game stays what it was. The task's rules (reward, oracle, which tokens may come next) see its own ids; actions
    that are no words of its own are not allowed, and count as its padding should a client take one all the same.

    Args:
        mdp: the task in its own vocabulary.
        tokenizer: has all its words.
        mark: a word before every prompt.

    Raises:
        ValueError: a word is missing.
    """

    def __init__(self, mdp: TextMDP, tokenizer: TextTokenizer, mark: str | None = None) -> None:
        self.own = mdp
        self.mark = mark
        shared = tokenizer.hf.get_vocab()
        own = mdp.tokenizer.hf.get_vocab()
        missing = sorted((word for word in own if word not in shared), key=own.__getitem__)
        if missing:
            raise ValueError(f"task '{mdp.task.name}' has the word '{missing[0]}', the shared vocabulary has not")
        self._shared_V = np.zeros(len(own), dtype=np.int64)
        self._own_V = np.full(tokenizer.vocab_size, mdp.tokenizer.pad_id, dtype=np.int64)
        for word, id in own.items():
            self._shared_V[id] = shared[word]
            self._own_V[shared[word]] = id
        self._mark_ids = np.array([] if mark is None else [shared[mark]], dtype=np.int64)
        whole = len(own) == tokenizer.vocab_size
        super().__init__(
            mdp.task,
            mdp.reward,
            tokenizer,
            max_prompt_tokens=mdp.max_prompt_tokens + len(self._mark_ids),
            max_new_tokens=mdp.max_new_tokens,
            split=mdp.split,
            truncation_side=mdp.truncation_side,
            allowed_tokens=None if whole and mdp.allowed_tokens is None else OwnWords(mdp, self._shared_V, self._own_V),
        )

    def prompt_ids(self, index: int) -> npt.NDArray[np.int64]:
        """As `TextMDP.prompt_ids`, in shared ids, behind the mark."""
        return np.concatenate([self._mark_ids, self._shared_V[self.own.prompt_ids(index)]])

    def complete(self, prompt_index: int, token_ids: Sequence[int], stop: StopReason | None) -> Completion:
        """The completion in the task's own ids, which is how its reward is to see it."""
        return self.own.complete(prompt_index, self._own_V[list(token_ids)].tolist(), stop)

    def on_split(self, split: str) -> InSharedWords:
        """The same rules on another split."""
        view = InSharedWords(self.own.on_split(split), self.tokenizer, self.mark)
        view.reward = self.reward
        return view


@dataclass(frozen=True)
class OwnWords:
    """Which shared ids may come next: those of a task's own words that it allows itself."""

    mdp: TextMDP
    shared_V: npt.NDArray[np.int64]
    own_V: npt.NDArray[np.int64]

    def __call__(self, prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
        """Shared ids."""
        allowed_V: list[int] = self.shared_V.tolist()
        if self.mdp.allowed_tokens is None:
            return allowed_V
        own = self.own_V[list(actions)].tolist()
        return [allowed_V[id] for id in self.mdp.allowed_tokens(prompt, own, self.mdp.tokenizer)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
