"""Text to token ids and back: an adapter over Hugging Face tokenizers, and a small one trained on a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from textgen_env.lookup import did_you_mean

PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|eos|>"

PAD_WORD, EOS_WORD = "<pad>", "<eos>"


class TextTokenizer:
    """The four things the MDP asks of a tokenizer: encode a prompt, encode a completion, decode, and EOS.

    Args:
        tokenizer: a hub name, a local folder, or a Hugging Face tokenizer object.
        eos_token_id: the id or ids that end an episode. Default: the tokenizer's own EOS and, for a name or
            folder, those of its ``generation_config.json`` (what ``generate`` would stop at).

    Attributes:
        vocab_size: number of actions; every id lies in ``[0, vocab_size)``.
        eos_ids: the ids that end an episode; the first is the one written after a reference text.
        pad_id: the id that fills the right of an observation. Never an EOS: a model that saw padding as EOS
            could not learn to stop. Where the tokenizer has no pad token of its own the lowest id that is no
            EOS fills in; that is safe because ``attention_mask``, never the id, says what is padding.

    Raises:
        ValueError: no EOS is known, or an id lies outside the vocabulary.
    """

    def __init__(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> None:
        self.hf: Any
        declared: list[int] = []
        if isinstance(tokenizer, (str, Path)):
            self.hf = AutoTokenizer.from_pretrained(str(tokenizer))
            declared = _generation_eos_ids(str(tokenizer))
        elif isinstance(tokenizer, PreTrainedTokenizerBase):
            self.hf = tokenizer
        else:
            raise TypeError(
                f"tokenizer must be a hub name, a folder or a Hugging Face tokenizer, not {type(tokenizer).__name__}"
            )
        self.vocab_size: int = max(self.hf.get_vocab().values()) + 1
        self.eos_ids = self._resolve_eos(eos_token_id, declared)
        own_pad = self.hf.pad_token_id
        if own_pad is None or own_pad in self.eos_ids:
            own_pad = next(index for index in range(len(self.eos_ids) + 1) if index not in self.eos_ids)
        self.pad_id: int = own_pad

    def _resolve_eos(self, asked: int | Sequence[int] | None, declared: list[int]) -> tuple[int, ...]:
        if asked is not None:
            ids = [int(index) for index in asked] if isinstance(asked, Iterable) else [int(asked)]
        else:
            own = [] if self.hf.eos_token_id is None else [self.hf.eos_token_id]
            ids = list(dict.fromkeys(own + declared))
        if not ids:
            raise ValueError(
                "the tokenizer names no EOS token, so an episode could never end by choice: "
                "set tokenizer.eos_token, or pass eos_token_id="
            )
        outside = [index for index in ids if not 0 <= index < self.vocab_size]
        if outside:
            raise ValueError(f"eos_token_id {outside[0]} lies outside the vocabulary of {self.vocab_size} tokens")
        return tuple(ids)

    def encode_prompt(self, text: str) -> npt.NDArray[np.int64]:
        """Token ids of shape (P,), P >= 1, with the tokenizer's own start token where it has one.

        An empty text becomes one start token (BOS, else EOS), as unconditional generation is usually begun.

        Raises:
            ValueError: a word is not in the vocabulary, and the tokenizer has no token for unknown ones.
        """
        ids = self._encode(text)
        while len(ids) > 1 and ids[-1] in self.eos_ids:  # some tokenizers close every text with EOS
            ids = ids[:-1]
        if not ids:
            start = self.hf.bos_token_id
            ids = [self.eos_ids[0] if start is None else start]
        return np.array(ids, dtype=np.int64)

    def encode_completion(self, prompt: str, completion: str) -> npt.NDArray[np.int64]:
        """Token ids of shape (T,) of a text that follows ``prompt``, the EOS at the end.

        The completion is encoded in its context, so that its first token carries the word boundary that a
        model would generate there; a single space is put between unless white space stands there already.
        """
        apart = not prompt or not completion or prompt[-1].isspace() or completion[0].isspace()
        before = self.encode_prompt(prompt)
        both = self.encode_prompt(prompt + ("" if apart else " ") + completion)
        if len(both) > len(before) and (both[: len(before)] == before).all():
            ids = both[len(before) :]
        else:  # a merge runs across the boundary: the completion's own tokens are the next best
            ids = np.array(self._encode(completion, add_special_tokens=False), dtype=np.int64)
        return np.append(ids, np.int64(self.eos_ids[0]))

    def _encode(self, text: str, **kwargs: Any) -> list[int]:
        try:
            ids: list[int] = self.hf.encode(text, **kwargs)
            return ids
        except Exception as error:  # tokenizers raises nothing more specific, and does not say which word
            if "Missing [UNK]" not in str(error):
                raise
            words = self.hf.get_vocab()
            unknown = next((word for word in text.split() if word not in words), text)
            raise ValueError(
                f"the vocabulary has no word '{unknown}', found in {text!r}; {did_you_mean(unknown, words)}"
            ) from error

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids, without special tokens and without white space around it."""
        text: str = self.hf.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts`` (any text can be encoded, nothing is unknown).

    The same texts give the same tokenizer; within a process it is trained once and shared.

    Args:
        texts: the training texts.
        vocab_size: an upper bound; 256 bytes and two special tokens are always there.

    Raises:
        ValueError: ``vocab_size`` has no room for the bytes and special tokens.
    """
    special = [PAD_TOKEN, EOS_TOKEN]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special):
        raise ValueError(f"vocab_size={vocab_size} is too small: bytes and special tokens need {len(alphabet) + 2}")
    texts = list(texts)
    digest = hashlib.blake2b(json.dumps([vocab_size, texts]).encode()).hexdigest()
    if digest not in _trained:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        while len(_trained) >= 8:
            _trained.pop(next(iter(_trained)))
        _trained[digest] = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=PAD_TOKEN,
            eos_token=EOS_TOKEN,
            padding_side="right",
            clean_up_tokenization_spaces=False,
        )
    return _trained[digest]


_trained: dict[str, PreTrainedTokenizerFast] = {}


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token a word, the words of a text standing apart by white space.

    Ids: 0 is padding ("<pad>"), 1 ends a text ("<eos>"), then the words in their order. There is no token for
    unknown words: to encode one is an error. The same words give the same object.

    >>> word_tokenizer(["left", "right"]).encode("right right left")
    [3, 3, 2]

    Args:
        words: distinct, without white space.

    Raises:
        ValueError: a word is empty, has white space in it, occurs twice or is one of the two special ones.
    """
    return _word_tokenizer(tuple(words))


@lru_cache(maxsize=8)
def _word_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    all_words = (PAD_WORD, EOS_WORD, *words)
    for word in words:
        if word.split() != [word]:
            raise ValueError(f"{word!r} is not one word: white space separates the words of a text")
        if all_words.count(word) > 1:
            raise ValueError(f"the word '{word}' occurs twice ('{PAD_WORD}' and '{EOS_WORD}' are there already)")
    vocabulary = {word: index for index, word in enumerate(all_words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_WORD,
        eos_token=EOS_WORD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _generation_eos_ids(name: str) -> list[int]:
    """The ``eos_token_id`` of a model folder's generation_config.json, as a list; empty when there is none."""
    path = cached_file(
        name,
        "generation_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return []
    ids = json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id")
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
