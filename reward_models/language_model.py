"""What a frozen language model thinks of a text: its log-likelihood, alone or after the prompt, in nats."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from reward_models.batching import Batch, BatchedModel, ModelSource, Row
from reward_models.composite import Composable
from reward_models.inputs import check_texts
from textgen_env.lookup import did_you_mean

_MEASURES = ("mean", "total")

Continuation: TypeAlias = tuple[list[int], list[int]]
"""Token ids of a context (at least one) and of the text after it (at least one)."""


class LanguageModel:
    """A causal LM that scores texts in batches, with its own tokenizer.

    Args:
        model, tokenizer, device, batch_size, max_length: see ``reward_models.batching.BatchedModel``. The logits of a
            batch hold ``batch_size * max_length * vocabulary`` floats at worst: lower the batch size where that is
            too many.

    Raises:
        ValueError: the tokenizer has neither a start nor an end token, so that a text's first token has nothing to
            stand after; or no text fits (``max_length`` below 2).
    """

    def __init__(
        self,
        model: ModelSource,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        self._batched = BatchedModel(
            AutoModelForCausalLM, model, tokenizer, device=device, batch_size=batch_size, max_length=max_length
        )
        if self._batched.max_length < 2:
            raise ValueError("max_length must be at least 2: a token is scored after another one")
        hf = self._batched.tokenizer
        self.end_id: int | None = hf.eos_token_id
        start = hf.bos_token_id if hf.bos_token_id is not None else hf.eos_token_id
        if start is None:
            raise ValueError("the tokenizer has neither a BOS nor an EOS token: set tokenizer.bos_token")
        self.start_id: int = start
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._batched.model.forward).parameters

    def continuations(self, contexts: Sequence[str], texts: Sequence[str], *, end: bool = False) -> list[Continuation]:
        """Token ids of B texts, each after its context.

        A text is encoded together with its context, so that its first token carries the word boundary that a model
        would write there; a single space is put between unless white space stands there already. Where a token would
        run across the boundary both are encoded by themselves, which spells the same characters. An empty context is
        the start token (BOS, else EOS).

        Args:
            contexts: B strings, empty for a text by itself.
            texts: B strings.
            end: end every text with the EOS. A text of no tokens always is: that nothing follows is an event too, and
                the model gives it a probability.

        Raises:
            ValueError: an EOS is wanted, and the tokenizer has none.
        """
        befores = self._with_start(contexts)
        follows = [_apart(context, text) for context, text in zip(contexts, texts, strict=True)]
        rows: list[list[int] | None] = [None] * len(texts)
        after_something = [index for index, context in enumerate(contexts) if context]
        joined = self._with_start([contexts[index] + follows[index] for index in after_something])
        for index, ids in zip(after_something, joined, strict=True):
            before = befores[index]
            rows[index] = ids[len(before) :] if ids[: len(before)] == before else None
        by_itself = [index for index, row in enumerate(rows) if row is None]
        for index, ids in zip(by_itself, self._encode([follows[index] for index in by_itself]), strict=True):
            rows[index] = ids
        return [(before, self._ended(row or [], end)) for before, row in zip(befores, rows, strict=True)]

    def log_likelihoods(self, continuations: Sequence[Continuation]) -> list[float]:
        """Σ_t log p(text_t | context, text_<t) of B texts, in nats.

        What is longer than the model's positions is read in overlapping windows: a token then sees at least the half
        of ``max_length`` before it, or all there is.
        """
        rows: list[Row] = []
        scored: list[int] = []  # how many tokens at the row's end are scored
        owner: list[int] = []
        for index, (context, text) in enumerate(continuations):
            for ids, count in windows(context + text, len(context), self._batched.max_length):
                rows.append({"input_ids": ids})
                scored.append(count)
                owner.append(index)

        def answer(batch: Batch) -> list[float]:
            return self._sums(batch, [scored[index] for index in batch.indices])

        totals = [0.0] * len(continuations)
        for index, value in zip(owner, self._batched.run(rows, answer), strict=True):
            totals[index] += value
        return totals

    def _sums(self, batch: Batch, scored: list[int]) -> list[float]:
        """The log-likelihood of the last ``scored`` tokens of every row."""
        ids_BS, mask_BS = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        width = ids_BS.shape[1]
        lengths_B1 = mask_BS.sum(dim=1, keepdim=True)
        first_B1 = lengths_B1 - torch.tensor(scored, device=ids_BS.device)[:, None]
        # A long prompt's logits are never made where the model can leave them out.
        keep = width - int(first_B1.min()) + 1
        extra = {"logits_to_keep": keep} if self._keeps_logits else {}
        logits_BKV = self._batched.model(**batch.inputs, use_cache=False, **extra).logits[:, -keep:-1].float()
        targets_BK = ids_BS[:, width - keep + 1 :]
        chosen_BK = logits_BKV.gather(-1, targets_BK[..., None])[..., 0] - logits_BKV.logsumexp(dim=-1)
        place_K = torch.arange(width - keep + 1, width, device=ids_BS.device)
        is_scored_BK = (place_K >= first_B1) & (place_K < lengths_B1)
        sums_B: list[float] = chosen_BK.double().masked_fill(~is_scored_BK, 0.0).sum(dim=1).tolist()
        return sums_B

    def _encode(self, texts: Sequence[str], special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self._batched.tokenizer(
            list(texts), add_special_tokens=special_tokens, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def _with_start(self, texts: Sequence[str]) -> list[list[int]]:
        """As a model would be prompted: the tokenizer's own special tokens, less an EOS that closes the text."""
        rows = []
        for ids in self._encode(texts, special_tokens=True):
            while ids and ids[-1] == self.end_id and ids[-1] != self.start_id:
                ids = ids[:-1]
            rows.append(ids or [self.start_id])
        return rows

    def _ended(self, ids: list[int], end: bool) -> list[int]:
        if ids and not end:
            return ids
        if self.end_id is None:
            raise ValueError("the tokenizer has no EOS token to end a text with: set tokenizer.eos_token")
        return [*ids, self.end_id]


def _apart(context: str, text: str) -> str:
    """The text with the space that stands between it and its context."""
    needs_space = context and text and not context[-1].isspace() and not text[0].isspace()
    return " " + text if needs_space else text


def windows(ids: list[int], start: int, length: int) -> list[tuple[list[int], int]]:
    """Cut a sequence that is longer than ``length`` so that each token from ``start`` on is scored once.

    Returns:
        Pairs (ids of the window, how many at its end are scored). What fits is one window.

    >>> windows([1, 2, 3, 4, 5, 6, 7], 1, 4)
    [([1, 2, 3, 4], 3), ([3, 4, 5, 6], 2), ([4, 5, 6, 7], 1)]
    """
    cut = []
    while start < len(ids):
        stop = min(len(ids), max(length, start + length // 2))
        cut.append((ids[max(0, stop - length) : stop], stop - start))
        start = stop
    return cut


class _LikelihoodReward(Composable):
    """What the three rewards below share: a language model, and the shape of a reward."""

    kind: Literal["terminal"] = "terminal"
    bounds: tuple[float, float] | None = None
    name: str

    def __init__(
        self,
        model: ModelSource,
        measure: str = "mean",
        *,
        end: bool = False,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        if measure not in _MEASURES:
            raise ValueError(f"unknown measure {measure!r}; {did_you_mean(str(measure), _MEASURES)}")
        self._lm = LanguageModel(model, tokenizer, device=device, batch_size=batch_size, max_length=max_length)
        self._is_mean, self._end = measure == "mean", end

    def _score(self, contexts: Sequence[str], completions: Sequence[str]) -> list[float]:
        continuations = self._lm.continuations(contexts, completions, end=self._end)
        totals = self._lm.log_likelihoods(continuations)
        if not self._is_mean:
            return totals
        return [total / len(text) for total, (_, text) in zip(totals, continuations, strict=True)]


class Fluency(_LikelihoodReward):
    """How likely a completion is by itself under a frozen causal LM: its log-likelihood in nats.

    An empty completion is scored by the probability of ending at once. High likelihood is not quality: repetition is
    likely too. Mix it with something that knows the task.

    Args:
        model: a hub name, a folder or a model object, any ``AutoModelForCausalLM``.
        measure: ``"mean"`` (a token) or ``"total"``.
        end: score the EOS after the text, too.
        tokenizer, device, batch_size, max_length: see ``reward_models.batching.BatchedModel``. A longer text is read
            in overlapping windows, nothing is cut.

    Raises:
        ValueError: an unknown measure, or a tokenizer that cannot start a text.

    Example::

        Fluency("gpt2")(completions=["The cat sat.", "Cat the the."])
    """

    name = "fluency"

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        """Score B completions; B floats, none above 0.

        Raises:
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions)
        return self._score([""] * len(completions), completions)


class ConditionalLikelihood(_LikelihoodReward):
    """How likely a completion is after its prompt, under a frozen causal LM: log p(completion | prompt) in nats.

    Arguments, errors and the rule for empty completions are those of ``Fluency``.

    Example::

        ConditionalLikelihood("gpt2", "total", end=True)
    """

    name = "conditional_likelihood"

    def __call__(self, completions: Sequence[str], prompts: Sequence[str], **_: Any) -> list[float]:
        """Score B completions of B prompts; B floats, none above 0.

        Raises:
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions, prompts=prompts)
        return self._score(prompts, completions)


class Perplexity(_LikelihoodReward):
    """exp of the negative mean log-likelihood of a completion by itself: lower is more fluent.

    As a reward it wants a negative weight; ``Fluency`` is the same judgement on a scale that rewards can bear.
    An empty completion's is that of ending at once. Arguments are those of ``Fluency``, less the measure.

    Example::

        0.0 * Perplexity("gpt2")  # weight 0: in the report, not in the reward
    """

    name = "perplexity"

    def __init__(self, model: ModelSource, **settings: Any) -> None:
        super().__init__(model, "mean", **settings)

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        """Score B completions; B floats of at least 1.

        Raises:
            TypeError: a text is not a string.
        """
        check_texts(self.name, completions=completions)
        return [math.exp(-score) for score in self._score([""] * len(completions), completions)]
