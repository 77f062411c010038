"""A frozen model run over many texts: read once, batched by length, answered in the order of the texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

ModelSource: TypeAlias = str | Path | PreTrainedModel
"""A hub name, a local folder or a model object."""

Row: TypeAlias = dict[str, list[int]]
"""One text as a model eats it: ``input_ids``, and ``token_type_ids`` where the tokenizer makes them."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that go through the model together, padded on the right."""

    indices: list[int]
    """Where its B rows stand in the list that was given."""
    inputs: dict[str, Tensor]
    """``input_ids``, ``attention_mask`` (1 keeps) and the tokenizer's other columns; each [B, tokens]."""


class BatchedModel:
    """A model with its tokenizer, and the one loop that all model scorers share.

    Rows are sorted by length (the longest first, so that too large a batch fails at once), padded on the right,
    where absolute positions stay true for every architecture, and run under ``inference_mode`` in evaluation mode.
    The scores of a text do not depend on its neighbours but for rounding (about 1e-6 in float32).

    Args:
        auto_class: the class of ``transformers`` that loads a name or folder, e.g. ``AutoModelForCausalLM``.
        model: a hub name, a folder, or a model object, which is used as it is and where it is.
        tokenizer: the same, for the tokenizer. Default: the one that stands beside the model.
        device: ``"auto"`` is the GPU where there is one; a model object stays where it is.
        batch_size: rows that go through the model at once.
        max_length: the longest row in tokens. Default: what the tokenizer and the model's positions allow.
        optional: prefixes of weights that a checkpoint may lack, since the scorer does not use them.

    Raises:
        TypeError: the model is none of these, or an object came without a tokenizer.
        ValueError: a size below 1, or a checkpoint that lacks weights the scorer needs.
    """

    def __init__(
        self,
        auto_class: Any,
        model: ModelSource,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
        optional: tuple[str, ...] = (),
    ) -> None:
        for name, size in (("batch_size", batch_size), ("max_length", max_length)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.model = _load_model(auto_class, model, optional)
        self.tokenizer: Any = _load_tokenizer(model, tokenizer)
        if device != "auto":
            self.model.to(device)
        elif not isinstance(model, nn.Module) and torch.cuda.is_available():
            self.model.to("cuda")
        self.batch_size = batch_size
        limits = [max_length, self.tokenizer.model_max_length, _positions(self.model)]
        self.max_length = min(limit for limit in limits if limit is not None)
        # RoBERTa counts positions, and classifiers on causal models find the last token, by the *model's* padding id.
        ids = (getattr(self.model.config, "pad_token_id", None), self.tokenizer.pad_token_id)
        self.pad_id: int = next((index for index in ids if index is not None), self.tokenizer.eos_token_id or 0)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Row]:
        """Rows with the tokenizer's special tokens, cut to ``max_length`` on its ``truncation_side``.

        Of a pair the longer text is cut. A row without any token (an empty text, where the tokenizer adds none of its
        own) becomes the start token: BOS, else EOS, else padding.
        """
        if not texts:
            return []
        kept = min(self.max_length, 2**31 - 1)  # "no limit" is larger than the tokenizers library can count
        columns = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=kept,
            return_attention_mask=False,
        )
        rows = [dict(zip(columns.keys(), row, strict=True)) for row in zip(*columns.values(), strict=True)]
        starts = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.pad_id)
        nothing: Row = {"input_ids": [next(index for index in starts if index is not None)]}
        return [row if row["input_ids"] else nothing for row in rows]

    def run(self, rows: Sequence[Row], answer: Callable[[Batch], Iterable[_T]]) -> list[_T]:
        """What ``answer`` makes of every row, in the order of the rows.

        Args:
            rows: each with at least one token.
            answer: called with each batch; gives one value a row.

        Raises:
            ValueError: a token id is unknown to the model: it speaks another tokenizer.
        """
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
        results: dict[int, _T] = {}
        # A user's model may be in training; a dropout mask has no place in a score.
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(order), self.batch_size):
                    batch = self._batch(rows, order[start : start + self.batch_size])
                    results.update(zip(batch.indices, answer(batch), strict=True))
        finally:
            self.model.train(was_training)
        return [results[index] for index in range(len(rows))]

    def _batch(self, rows: Sequence[Row], indices: list[int]) -> Batch:
        width = max(len(rows[index]["input_ids"]) for index in indices)
        padded: dict[str, list[list[int]]] = {"attention_mask": []}
        for index in indices:
            count = len(rows[index]["input_ids"])
            padded["attention_mask"].append([1] * count + [0] * (width - count))
            for name, values in rows[index].items():
                fill = self.pad_id if name == "input_ids" else 0
                padded.setdefault(name, []).append(values + [fill] * (width - count))
        known = self.model.get_input_embeddings().num_embeddings
        largest = max(map(max, padded["input_ids"]))
        if largest >= known:
            raise ValueError(
                f"the tokenizer made token {largest}, but the model knows {known} tokens: pass the tokenizer that the "
                "model was trained with"
            )
        return Batch(indices, {name: torch.tensor(values, device=self.device) for name, values in padded.items()})


def _load_model(auto_class: Any, source: ModelSource, optional: tuple[str, ...]) -> Any:
    if isinstance(source, nn.Module) and hasattr(source, "config"):
        return source  # peft's wrappers are no PreTrainedModel
    if not isinstance(source, (str, Path)):
        raise TypeError(f"model must be a hub name, a folder or a model object, not {type(source).__name__}")
    with torch.random.fork_rng(devices=[]):  # transformers draws what a checkpoint lacks from the global generator
        model, loaded = auto_class.from_pretrained(str(source), dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith(optional))
    if missing:
        raise ValueError(
            f"'{source}' has no weights for {', '.join(missing[:3])}{' …' if missing[3:] else ''}: it is no fitted "
            f"{type(model).__name__}, and random ones would make the scores noise"
        )
    return model.requires_grad_(False)


def _load_tokenizer(source: ModelSource, tokenizer: str | Path | PreTrainedTokenizerBase | None) -> Any:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is None and isinstance(source, nn.Module):
        raise TypeError("a model object comes without a tokenizer: pass tokenizer= (a name, a folder or an object)")
    return AutoTokenizer.from_pretrained(str(source if tokenizer is None else tokenizer))


def _positions(model: Any) -> int | None:
    """How many tokens the model has positions for, if it says."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return None
    for name, module in model.named_modules():
        # RoBERTa's table begins after the padding id.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(limit) - module.padding_idx - 1
    return int(limit)
