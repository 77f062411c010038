"""Rewards from and for other libraries.

TRL's reward functions need nothing: our convention is theirs. They get plain texts here; one that is written for
conversations goes through `conversational`. RL4LMs' go through `from_rl4lms`, and ours into TRL through `to_trl`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from reward_models.composite import Composable
from textgen_env.reward import RewardError
from textgen_env.reward_registry import resolve_reward
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Completion, Prompt

_TRAINER_ARGUMENTS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})
"""What TRL's trainers hand to reward functions besides the columns: objects, not one value a completion."""


class _Adapter(Composable):
    """A function of another library under its own name."""

    kind = "terminal"

    def __init__(self, function: Callable[..., Any], name: str | None) -> None:
        if not callable(function):
            raise TypeError(f"expected a reward function, got {type(function).__name__}")
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__.lower())
        self._parameters = tuple(inspect.signature(function).parameters.values())

    def _takes_any(self, kind: Any) -> bool:
        return any(parameter.kind is kind for parameter in self._parameters)


class conversational(_Adapter):
    """A TRL reward function that expects conversations: lists of ``{"role", "content"}`` messages.

    It gets each prompt as one message of the user and each completion as one of the assistant.

    Args:
        function: such as TRL's ``think_format_reward``.
        name: its key in ``info["reward"]``; default: the function's name.

    >>> def starts_politely(completions, **kwargs):
    ...     return [float(messages[0]["content"].startswith("Dear")) for messages in completions]
    >>> conversational(starts_politely)(prompts=["Write!"], completions=["Dear you"])
    [1.0]
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        super().__init__(function, name)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Any:
        """Whatever the function returns, an awaitable included."""
        arguments = {
            "prompts": [[{"role": "user", "content": text}] for text in prompts],
            "completions": [[{"role": "assistant", "content": text}] for text in completions],
            **columns,
        }
        if not self._takes_any(inspect.Parameter.VAR_KEYWORD):
            named = {parameter.name for parameter in self._parameters}
            arguments = {name: values for name, values in arguments.items() if name in named}
        return self.function(**arguments)


class from_rl4lms(_Adapter):
    """A batched reward function of RL4LMs as one of ours.

    It is called by position with as many as it takes of ``(prompt_texts, gen_texts, ref_texts, dones, meta_infos)``:
    lists of B texts, texts, lists of references, True, and dicts of the prompt's metadata.

    Args:
        function: a function of this kind, or an instance of RL4LMs' ``BatchedRewardFunction``.
        name: its key in ``info["reward"]``; default: the function's name.

    Raises:
        TypeError: not callable.
        RewardError: it is a function of single steps (RL4LMs' ``RewardFunction``) or takes fewer than two lists.

    >>> def overlap(prompts, generations, references):
    ...     return [float(text in known) for text, known in zip(generations, references)]
    >>> 2 * from_rl4lms(overlap)
    2 * overlap
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        super().__init__(function, name)
        positional = [p for p in self._parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if any(p.name == "action" or p.name.endswith("observation") for p in positional):
            raise RewardError(
                f"reward '{self.name}' is asked about single steps (observation, action, …): write it as a function "
                "of the finished texts, (prompts, generations, references)"
            )
        self._count = 5 if self._takes_any(inspect.Parameter.VAR_POSITIONAL) else min(5, len(positional))
        if self._count < 2:
            raise RewardError(f"reward '{self.name}' must take (prompts, generations, …), by position")

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        references: list[list[str]],
        stop_reasons: list[str],
        **metadata: list[Any],
    ) -> Any:
        """Whatever the function returns."""
        dones = [reason is not None for reason in stop_reasons]
        infos = [{key: values[row] for key, values in metadata.items()} for row in range(len(prompts))]
        return self.function(*(prompts, completions, references, dones, infos)[: self._count])


class to_trl:
    """Any reward of ours as one of TRL's: ``GRPOTrainer(reward_funcs=[to_trl("rouge_l", tokenizer)], …)``.

    The columns of TRL's dataset are the prompts' metadata, but for the one with the references. TRL gets one number a
    completion: what the finished text is paid in all, None where the reward does not apply.

    Args:
        reward: anything `resolve_reward` takes.
        tokenizer: the one that TRL generates with (a name, folder, object or `TextTokenizer`): its EOS tells whether a
            text was cut.
        references: the column with the references: a list of texts a row, or one text.
        name: what TRL's log calls it; default: the reward's name.

    Raises:
        RewardError: when called with conversations, or with references of another kind.
    """

    def __init__(
        self,
        reward: Any,
        tokenizer: str | Path | PreTrainedTokenizerBase | TextTokenizer,
        *,
        references: str = "references",
        name: str | None = None,
    ) -> None:
        self.reward = resolve_reward(reward)
        self.tokenizer = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer)
        self.references = references
        self.__name__ = name or self.reward.name  # where TRL looks for the name

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """The rewards of B completions.

        Raises:
            RewardError: the reward's own errors, and those above.
        """
        columns = {key: values for key, values in columns.items() if key not in _TRAINER_ARGUMENTS}
        known = columns.pop(self.references, [()] * len(prompts))
        rows = []
        for row, (prompt, text, ids) in enumerate(zip(prompts, completions, completion_ids, strict=True)):
            if not (isinstance(prompt, str) and isinstance(text, str)):
                raise RewardError(
                    f"reward '{self.__name__}' scores plain texts, and TRL gave it a conversation: use a dataset whose "
                    "prompts are strings"
                )
            if not len(ids):
                raise RewardError(f"reward '{self.__name__}': completion {row}, of prompt {prompt!r:.80}, has no token")
            metadata = {key: values[row] for key, values in columns.items()}
            asked = Prompt(prompt, self._texts(known[row]), metadata)
            stop = "eos" if ids[-1] in self.tokenizer.eos_ids else "length"
            rows.append(Completion(asked, text, tuple(ids), stop, self.tokenizer.decode))  # type: ignore[arg-type]
        found = self.reward.judge(rows)
        return [float(total) if valid else None for total, valid in zip(found.totals, found.valid, strict=True)]

    def _texts(self, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, Sequence) and all(isinstance(text, str) for text in value):
            return tuple(value)
        raise RewardError(
            f"reward '{self.__name__}' wants texts in the column '{self.references}', got {type(value).__name__}: "
            "name another with references="
        )
