"""The rules of the game, shared by one episode (`env`) and by batched rows (`vector_env`).

State: the token prefix. Action: the next token. An episode ends, ``terminated``, with an EOS action or with
``max_new_tokens`` (the length cap belongs to the MDP, so the text is scored and nothing is bootstrapped).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from transformers import PreTrainedTokenizerBase

from textgen_env.lookup import did_you_mean, load_entry_point
from textgen_env.reward import Reward
from textgen_env.reward_registry import resolve_reward
from textgen_env.tasks import TextTask, resolve_task
from textgen_env.tokenizer import TextTokenizer, train_tokenizer, word_tokenizer
from textgen_env.types import AllowedTokens, Completion, Prompt, Scores, StopReason

MAX_NEW_TOKENS = 32
VOCAB_SIZE = 1024
"""What holds where neither the caller nor the task says otherwise."""


class TextMDP:
    """A task, a tokenizer, a reward and two limits.

    Args:
        task: a `TextTask`, ``"module:attr"``, a function that makes one, or a .jsonl/.csv file.
        reward: a registered name, ``"module:attr"``, a function or an object (see `textgen_env.reward`).
            Default: the task's.
        tokenizer: a hub name, folder, Hugging Face tokenizer or `TextTokenizer`. Default: one token a word where
            the task has a vocabulary, else a byte-level BPE trained on the task's training texts.
        max_prompt_tokens: longer prompts are cut (with one warning). Default: the longest prompt of the task.
        max_new_tokens: the length cap of a completion. Default: the task's, else 32.
        split: which prompts are drawn: "train", "validation" or "test".
        truncation_side: which end of a long prompt is cut off; "left" keeps the end, where the question stands.
        eos_token_id: overrides the tokenizer's EOS (one id or several).
        vocab_size: size of the tokenizer trained where none is given. Default: 1024.
        allowed_tokens: a function of prompt, actions so far and tokenizer (or its ``"module:attr"``) that returns
            the ids of the tokens that may come next. ``info["action_mask"]`` then reports them; the environment
            does not enforce them: ``step`` takes any token, as Gymnasium's convention is. Default: the task's.
        task_kwargs: handed to ``task`` where it is a function.

    Raises:
        ValueError: an argument has no meaning, or neither the caller nor the task gives a reward.

    Attributes:
        prompts: the prompts of the split.
        observation_space: ``Dict(input_ids=Box int64 (L,), attention_mask=Box int8 (L,))``, padded on the
            right, ``L = max_prompt_tokens + max_new_tokens``.
        action_space: ``Discrete(vocab_size)``.
    """

    def __init__(
        self,
        task: TextTask | str | Path | Callable[..., TextTask],
        reward: Any = None,
        tokenizer: str | Path | PreTrainedTokenizerBase | TextTokenizer | None = None,
        *,
        max_prompt_tokens: int | None = None,
        max_new_tokens: int | None = None,
        split: str = "train",
        truncation_side: Literal["left", "right"] = "left",
        eos_token_id: int | Sequence[int] | None = None,
        vocab_size: int | None = None,
        allowed_tokens: AllowedTokens | str | None = None,
        task_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("max_prompt_tokens", max_prompt_tokens), ("max_new_tokens", max_new_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if truncation_side not in ("left", "right"):
            raise ValueError(f"truncation_side must be 'left' or 'right', got {truncation_side!r}")
        self.task = resolve_task(str(task) if isinstance(task, Path) else task, **(task_kwargs or {}))
        self.split = split
        self.prompts: tuple[Prompt, ...] = self.task.prompts(split)
        reward = self.task.reward if reward is None else reward
        if reward is None:
            raise ValueError(
                f"task '{self.task.name}' brings no reward: pass reward= a registered name, 'module:attr' or a function"
            )
        self.reward: Reward = resolve_reward(reward)
        if isinstance(tokenizer, TextTokenizer):
            if eos_token_id is not None:
                raise ValueError("a TextTokenizer has its EOS already: pass eos_token_id to it, not to the environment")
            self.tokenizer = tokenizer
        else:
            if tokenizer is None:
                tokenizer = self._own_tokenizer(vocab_size)
            self.tokenizer = TextTokenizer(tokenizer, eos_token_id)
        self.truncation_side = truncation_side
        self._prompt_ids: dict[int, npt.NDArray[np.int64]] = {}
        self._warned_of_truncation = False
        self.max_prompt_tokens = max_prompt_tokens or self._longest_prompt()
        self.max_new_tokens: int = max_new_tokens or self.task.max_new_tokens or MAX_NEW_TOKENS
        allowed = self.task.allowed_tokens if allowed_tokens is None else allowed_tokens
        self.allowed_tokens: AllowedTokens | None = load_entry_point(allowed) if isinstance(allowed, str) else allowed
        if not (self.allowed_tokens is None or callable(self.allowed_tokens)):
            raise TypeError(
                f"allowed_tokens must be a function of prompt, actions and tokenizer, or its 'module:attr'; "
                f"got {type(self.allowed_tokens).__name__}"
            )

        length = self.max_prompt_tokens + self.max_new_tokens
        vocab = self.tokenizer.vocab_size
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {
                "input_ids": spaces.Box(0, vocab - 1, (length,), np.int64),
                "attention_mask": spaces.Box(0, 1, (length,), np.int8),
            }
        )
        self.action_space = spaces.Discrete(vocab)
        self.is_eos_V = np.zeros(vocab, dtype=np.bool_)
        self.is_eos_V[list(self.tokenizer.eos_ids)] = True

    def _own_tokenizer(self, vocab_size: int | None) -> PreTrainedTokenizerBase:
        if self.task.vocabulary is None:
            return train_tokenizer(self.task.texts("train"), VOCAB_SIZE if vocab_size is None else vocab_size)
        if vocab_size is not None:
            raise ValueError(
                f"vocab_size has no effect here, task '{self.task.name}' has a vocabulary of its own: leave it out"
            )
        return word_tokenizer(self.task.vocabulary)

    def _longest_prompt(self) -> int:
        # Over all splits: environments for training and evaluation must share one observation space.
        return max(
            len(self.tokenizer.encode_prompt(prompt.text)) for split in self.task.splits.values() for prompt in split
        )

    def prompt_ids(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of prompt ``index``, shape (P,), 1 <= P <= max_prompt_tokens.

        Raises:
            IndexError: there is no such prompt in the split.
        """
        ids = self._prompt_ids.get(index)
        if ids is None:
            if not 0 <= index < len(self.prompts):
                raise IndexError(
                    f"prompt_index {index} is out of range: split '{self.split}' has {len(self.prompts)} prompts"
                )
            ids = self.tokenizer.encode_prompt(self.prompts[index].text)
            if len(ids) > self.max_prompt_tokens:
                if not self._warned_of_truncation:
                    self._warned_of_truncation = True
                    warnings.warn(
                        f"prompt {index} of split '{self.split}' has {len(ids)} tokens and is cut on the "
                        f"{self.truncation_side} to max_prompt_tokens={self.max_prompt_tokens} (said once)",
                        stacklevel=2,
                    )
                cut = self.max_prompt_tokens
                ids = ids[-cut:] if self.truncation_side == "left" else ids[:cut]
            self._prompt_ids[index] = ids
        return ids

    def complete(self, prompt_index: int, token_ids: Sequence[int], stop: StopReason | None) -> Completion:
        """The completion that ``token_ids`` (the actions so far) are for prompt ``prompt_index``."""
        ids = tuple(int(token) for token in token_ids)
        decode = self.tokenizer.decode
        return Completion(self.prompts[prompt_index], decode(ids), ids, stop, decode)

    def score(self, completions: Sequence[Completion]) -> Scores:
        """The reward of a batch of completions: one call of the plug-in."""
        return self.reward.score(completions)

    def for_evaluation(self) -> TextMDP:
        """The same rules with a reward that no longer adapts; prompts already encoded are shared."""
        return self.with_reward(self.reward.frozen())

    def with_reward(self, reward: Any) -> TextMDP:
        """The same rules with another reward; prompts already encoded are shared."""
        view = copy.copy(self)
        view.reward = resolve_reward(reward)
        return view

    def with_tokenizer(self, tokenizer: str | Path | PreTrainedTokenizerBase | TextTokenizer) -> TextMDP:
        """The same rules in another tokenizer's tokens, with room for the longest prompt as it counts them.

        These rules themselves where the vocabularies are the same.
        """
        if not isinstance(tokenizer, TextTokenizer):
            tokenizer = TextTokenizer(tokenizer)
        if self.tokenizer.hf.get_vocab() == tokenizer.hf.get_vocab():
            return self
        return TextMDP(
            self.task,
            self.reward,
            tokenizer,
            max_new_tokens=self.max_new_tokens,
            split=self.split,
            truncation_side=self.truncation_side,
            allowed_tokens=self.allowed_tokens,
        )

    def on_split(self, split: str) -> TextMDP:
        """The same rules, the reward included, on another split.

        Raises:
            ValueError: the task has no such split, or it is empty.
        """
        view = copy.copy(self)
        view.split, view.prompts = split, self.task.prompts(split)
        view._prompt_ids, view._warned_of_truncation = {}, False
        return view

    @property
    def is_dense(self) -> bool:
        """Whether the reward pays every token as it comes, rather than the finished text."""
        return self.reward.kind == "dense"

    def returns(self, completions: Sequence[Completion]) -> npt.NDArray[np.float64]:
        """Shape (B,): what the environment pays for each finished completion in all, undiscounted.

        A dense reward is asked about every prefix, as ``step`` asks, and pays the newest token of each. What a
        reward adapts in training (a running normalisation) is not touched.
        """
        if not self.is_dense:
            return self.reward.frozen().score(completions).totals
        return np.array([self._paid(completion) for completion in completions], dtype=np.float64)

    def _paid(self, completion: Completion) -> float:
        if completion.decode is None:
            completion = replace(completion, decode=self.tokenizer.decode)
        growing = [completion.prefix(length) for length in range(1, len(completion.token_ids))]
        scores = self.reward.frozen().score([*growing, completion])
        return float(sum(rewards[-1] for rewards in scores.token_rewards))

    def oracle_completion(self, prompt_index: int) -> Completion:
        """The optimal completion of prompt ``prompt_index``, as its task knows it.

        Raises:
            ValueError: the task has no oracle, or ``max_new_tokens`` leaves no room for its words.
            IndexError: there is no such prompt in the split.
        """
        if self.task.oracle is None:
            raise ValueError(f"task '{self.task.name}' has no oracle: its optimum is not known")
        return self.written(prompt_index, self.task.oracle(self.prompts[prompt_index]))

    def written(self, prompt_index: int, text: str) -> Completion:
        """The completion of prompt ``prompt_index`` that says ``text``.

        It ends with EOS unless ``max_new_tokens`` ends it first.

        Raises:
            ValueError: ``max_new_tokens`` leaves no room for the text.
            IndexError: there is no such prompt in the split.
        """
        prompt = self.prompts[prompt_index]
        ids = self.tokenizer.encode_completion(prompt.text, text)
        cap = self.max_new_tokens
        if len(ids) > cap + 1:
            raise ValueError(
                f"the answer {text!r:.80} to {prompt.text!r:.80} of task '{self.task.name}' has {len(ids) - 1} tokens: "
                f"max_new_tokens={cap} leaves no room for it, raise it"
            )
        return self.complete(prompt_index, ids[:cap].tolist(), "eos" if len(ids) <= cap else "length")

    def optimal_return(self, prompt_indices: Iterable[int] | None = None) -> float:
        """The best undiscounted return there is, a mean over prompts: what the oracle's completions earn.

        Args:
            prompt_indices: the prompts; by default the whole split.

        Raises:
            ValueError: as for `oracle_completion`, or the list is empty.
        """
        indices = range(len(self.prompts)) if prompt_indices is None else list(prompt_indices)
        if not indices:
            raise ValueError("prompt_indices is empty: there is no mean over no prompts")
        return float(self.returns([self.oracle_completion(index) for index in indices]).mean())

    def action_mask(self, prompt_index: int, actions: Sequence[int]) -> npt.NDArray[np.int8]:
        """Shape (V,): 1 where a token may follow ``actions``, as ``Discrete.sample(mask=...)`` reads it.

        All ones where nothing constrains the task.

        Raises:
            ValueError: ``allowed_tokens`` returned nothing, or what is no token id.
        """
        vocab = self.tokenizer.vocab_size
        if self.allowed_tokens is None:
            return np.ones(vocab, dtype=np.int8)
        prompt = self.prompts[prompt_index]
        allowed = np.asarray(self.allowed_tokens(prompt, actions, self.tokenizer))
        if allowed.ndim != 1 or not len(allowed):
            problem = "nothing" if not allowed.size else f"an array of shape {allowed.shape}"
        elif allowed.dtype.kind not in "iu":
            problem = f"{allowed.dtype} values"
        elif (outside := (allowed < 0) | (allowed >= vocab)).any():
            problem = f"{allowed[outside][0]}, which lies outside the vocabulary of {vocab} tokens,"
        else:
            mask = np.zeros(vocab, dtype=np.int8)
            mask[allowed] = 1
            return mask
        raise ValueError(
            f"allowed_tokens returned {problem} for prompt {prompt.text!r} after {self.tokenizer.decode(actions)!r} "
            f"(tokens {list(actions)}): return the ids of one or more tokens, the EOS where the text may end"
        )

    def reset_info(self, prompt_index: int) -> dict[str, Any]:
        """What ``reset`` reports: the prompt, its references and its index in the split, and what is allowed."""
        prompt = self.prompts[prompt_index]
        info = {"prompt": prompt.text, "references": prompt.references, "prompt_index": prompt_index}
        if self.allowed_tokens is not None:
            info["action_mask"] = self.action_mask(prompt_index, ())
        return info

    def end_info(self, completion: Completion, scores: Scores, index: int) -> dict[str, Any]:
        """What ``step`` reports at the end of an episode.

        ``reward`` holds every component; ``token_rewards`` is there when a plug-in gave one value a token
        although it was asked about the finished text only (their sum is what the last step pays).
        """
        info = {
            "prompt": completion.prompt.text,
            "references": completion.prompt.references,
            "text": completion.text,
            "stop_reason": completion.stop_reason,
            "reward": scores.info(index),
            "completion": completion,
        }
        if not self.is_dense and scores.token_rewards[index][:-1].any():
            info["token_rewards"] = tuple(scores.token_rewards[index].tolist())
        return info

    def check_prompt_options(self, options: Mapping[str, Any] | None, known: Sequence[str]) -> None:
        """Refuse a misspelled reset option: it would be ignored without a word."""
        for key in options or {}:
            if key not in known:
                raise ValueError(f"unknown reset option '{key}': {did_you_mean(key, known)}")
