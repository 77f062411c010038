"""A prompt and its completion as the token rows that a sequence classifier reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgen_env import TextTokenizer

PAD_TOKEN = "<|pad|>"


@dataclass(frozen=True)
class Row:
    """One text of S tokens, without padding."""

    input_ids: list[int]
    token_type_ids: list[int] | None


class PairEncoder:
    """Turns (prompt, completion) into one row of tokens, and rows into batches padded on the right.

    A decoder (GPT-2, Llama, ...) reads ``prompt completion EOS``, and its head the last token, which is that EOS. It
    needs a padding token other than its EOS, since the classifiers of transformers look for the last token that is
    not padding: where the tokenizer has none, `with_padding` adds one. An encoder (BERT, ...) reads the pair as its
    tokenizer writes it.

    Where both together are too long, the longer of the two is cut, at the tokenizer's ``truncation_side``; the EOS
    stays. The first cut is warned of.

    Args:
        tokenizer: the model's own.
        last_token: whether the model's head reads the last token.
        max_length: most tokens in a row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, last_token: bool, max_length: int) -> None:
        self.hf: Any = tokenizer
        self.max_length = max_length
        self._text = TextTokenizer(tokenizer) if last_token else None
        self._pad_id: int = tokenizer.pad_token_id
        self._warned = False

    def encode(self, prompt: str, completion: str) -> Row:
        """The row of one text."""
        if self._text is None:
            full = self.hf(prompt, completion)
            if len(full["input_ids"]) > self.max_length:
                self._warn(len(full["input_ids"]))
                full = self.hf(prompt, completion, truncation="longest_first", max_length=self.max_length)
            return Row(full["input_ids"], full.get("token_type_ids"))
        head = self._text.encode_prompt(prompt).tolist()
        *body, end = self._text.encode_completion(prompt, completion).tolist()
        room = self.max_length - 1
        if len(head) + len(body) > room:
            self._warn(len(head) + len(body) + 1)
            half = room // 2
            keep = max(room - len(body), room - half) if len(head) > half else len(head)
            head, body = self._cut(head, keep), self._cut(body, room - min(keep, len(head)))
        return Row([*head, *body, end], None)

    def _cut(self, ids: list[int], keep: int) -> list[int]:
        return ids[max(0, len(ids) - keep) :] if self.hf.truncation_side == "left" else ids[:keep]

    def _warn(self, tokens: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a text of {tokens} tokens is cut to the reward model's {self.max_length} (said once)", stacklevel=4
            )

    def collate(self, rows: Sequence[Row], device: torch.device | str) -> dict[str, Tensor]:
        """B rows as the model's inputs of shape [B, S], padded on the right."""
        width = max(len(row.input_ids) for row in rows)
        inputs = {
            "input_ids": [row.input_ids + [self._pad_id] * (width - len(row.input_ids)) for row in rows],
            "attention_mask": [[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in rows],
        }
        if rows[0].token_type_ids is not None:
            inputs["token_type_ids"] = [(row.token_type_ids or []) + [0] * (width - len(row.input_ids)) for row in rows]
        return {name: torch.tensor(values, device=device) for name, values in inputs.items()}


def reads_last_token(model: PreTrainedModel) -> bool:
    """Whether a sequence classifier scores the last token (decoders, whose head transformers calls ``score``)."""
    return hasattr(model, "score")


def with_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that tokenizer and model know one padding token, which ends no text.

    A tokenizer without one, or whose padding is its EOS, gets a new token, and the model a row of embeddings for it.
    """
    hf: Any = tokenizer
    embeddings: Any = model.get_input_embeddings()
    if hf.pad_token_id is None or hf.pad_token_id == hf.eos_token_id:
        hf.add_special_tokens({"pad_token": PAD_TOKEN})
        if len(hf) > embeddings.weight.shape[0]:
            with torch.random.fork_rng(devices=[]):  # transformers draws the new row, which nothing ever attends to
                model.resize_token_embeddings(len(hf), mean_resizing=False)
    hf.padding_side = "right"
    model.config.get_text_config().pad_token_id = hf.pad_token_id
    model.config.pad_token_id = hf.pad_token_id


def in_batches(lengths: Sequence[int], max_rows: int, max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first: at most ``max_rows`` rows and ``max_tokens`` tokens, padding
    included (one row may have more).
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
