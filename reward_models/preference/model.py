"""The learned reward model: a transformer with a scalar head, which is itself a reward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from reward_models.composite import Composable
from reward_models.inputs import check_texts
from reward_models.preference.encoding import PairEncoder, Row, in_batches, reads_last_token, with_padding
from reward_models.preference.source import ScorerSource, load_scorer, load_trained_scorer, small_llama
from textgen_env import TextTokenizer, train_tokenizer

_GAIN, _BIAS, _LENGTH, _TIES = "reward_gain", "reward_bias", "reward_max_length", "reward_tie_threshold"
_NO_LIMIT = 1 << 30
MICRO_BATCH_TOKENS = 16_384


class RewardModel(Composable):
    """Scores completions of prompts by a transformer: ``score = gain · logit + bias``.

    A decoder reads ``prompt completion EOS`` and gives the logit at that EOS, its last real token; an encoder reads
    the pair, pooled as its architecture does. `save` writes a Hugging Face sequence-classification folder whose own
    ``logits`` are those of `logits` here; gain and bias stand in its ``config.json`` as ``reward_gain`` and
    ``reward_bias``.

    Args:
        source: a hub name, a folder, a configuration or a model object; a head that it lacks is drawn (`load_scorer`).
        tokenizer: a hub name, a folder or a tokenizer; by default the one beside ``source``. An object is copied.
        name: its key in ``info["reward"]``.
        seed: draws what is fresh in the model.
        device: "auto", "cpu", "cuda", ...
        batch_size: most texts in one forward.
        max_length: most tokens of prompt and completion; by default what the model has positions for. Longer texts
            are cut, see `PairEncoder`.

    Attributes:
        gain: multiplies the logit.
        bias: is added to that.
        tie_threshold: η of Rao & Kupper, in logits, where it was fitted to comparisons with ties; else 0.

    Raises:
        ValueError: no tokenizer is given for a config or an object, or there is no room for a text.
        TypeError, OSError: ``source`` or ``tokenizer`` is nothing that can be loaded.
    """

    kind: Literal["terminal"] = "terminal"
    bounds = None

    def __init__(
        self,
        source: ScorerSource,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        *,
        name: str = "reward_model",
        seed: int = 0,
        device: str = "auto",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> None:
        if tokenizer is None:
            if isinstance(source, (PreTrainedConfig, PreTrainedModel)):
                raise ValueError(f"a {type(source).__name__} comes without a tokenizer: pass tokenizer=")
            tokenizer = source
        self._assemble(load_scorer(source, seed), tokenizer, name, device, batch_size, max_length)

    def _assemble(
        self, model: Any, tokenizer: Any, name: str, device: str, batch_size: int, max_length: int | None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.name = name
        self.model: Any = model
        self.tokenizer: Any = (
            AutoTokenizer.from_pretrained(str(tokenizer))
            if isinstance(tokenizer, (str, Path))
            else copy.deepcopy(tokenizer)
        )
        with_padding(model, self.tokenizer)
        config = model.config
        self.gain = float(getattr(config, _GAIN, 1.0))
        self.bias = float(getattr(config, _BIAS, 0.0))
        self.tie_threshold = float(getattr(config, _TIES, 0.0))
        self.max_length = int(max_length or getattr(config, _LENGTH, None) or _room(model, self.tokenizer))
        if not 4 <= self.max_length <= _positions(model):
            raise ValueError(
                f"max_length={self.max_length} must be at least 4 and at most the model's {_positions(model)} positions"
            )
        self.batch_size = batch_size
        self.encoder = PairEncoder(self.tokenizer, last_token=reads_last_token(model), max_length=self.max_length)
        self.model.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.model.eval()

    @classmethod
    def load(
        cls, folder: str | Path, *, name: str = "reward_model", device: str = "auto", batch_size: int = 32
    ) -> RewardModel:
        """A fitted reward model from its folder, or from any sequence classifier with one output.

        Raises:
            ValueError: the model in the folder was never fitted.
            OSError: there is none.
        """
        loaded = cls.__new__(cls)
        loaded._assemble(load_trained_scorer(folder), folder, name, device, batch_size, None)
        return loaded

    @classmethod
    def small(
        cls,
        texts: Sequence[str],
        *,
        seed: int = 0,
        max_length: int = 512,
        vocab_size: int = 1024,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        **options: Any,
    ) -> RewardModel:
        """A small decoder from scratch, its tokenizer trained on ``texts``: no download.

        Raises:
            ValueError: a size does not fit (see `small_llama` and `train_tokenizer`).
        """
        tokenizer = TextTokenizer(train_tokenizer(texts, vocab_size))
        config = small_llama(tokenizer, max_length=max_length, layers=layers, width=width, heads=heads)
        return cls(config, tokenizer.hf, seed=seed, **options)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.model.device
        return device

    @property
    def width(self) -> int:
        """The hidden width."""
        return int(self.model.config.get_text_config().hidden_size)

    def __call__(self, completions: Sequence[str], prompts: Sequence[str], **_: Any) -> list[float]:
        """B scores.

        Raises:
            ValueError: the lists differ in length.
            FloatingPointError: a score is not finite.
        """
        logits_B = self.logits(prompts, completions)
        if not bool(logits_B.isfinite().all()):
            index = int((~logits_B.isfinite()).nonzero()[0])
            raise FloatingPointError(f"{self.name} gives {logits_B[index]} for {completions[index]!r}: broken weights?")
        return [self.gain * logit + self.bias for logit in logits_B.tolist()]

    def logits(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """The model's raw outputs, shape (B,), float32 on the CPU.

        Raises:
            ValueError: the lists differ in length, or a text is no valid Unicode.
            TypeError: a text is no string.
        """
        check_texts(self.name, prompts=prompts, completions=completions)
        rows = [self.encoder.encode(*pair) for pair in zip(prompts, completions, strict=True)]
        return self.logits_of_rows(rows)

    @torch.no_grad()
    def logits_of_rows(self, rows: Sequence[Row]) -> Tensor:
        """As `logits`, of rows that are encoded already."""
        training = self.model.training
        self.model.eval()
        logits_B = torch.empty(len(rows))
        for batch in in_batches([len(row.input_ids) for row in rows], self.batch_size, MICRO_BATCH_TOKENS):
            logits_B[batch] = self.forward([rows[index] for index in batch]).cpu()
        self.model.train(training)
        return logits_B

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """The logits of rows in one forward, shape (B,), float32, with their graph."""
        logits_B1: Tensor = self.model(**self.encoder.collate(rows, self.device)).logits
        return logits_B1[:, 0].float()

    def normalise(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Set gain and bias so that the scores of these texts have mean 0 and standard deviation 1.

        Comparisons fix scores up to a shift, and their scale is the raters' consistency: samples of the reference
        policy give both a meaning (Stiennon et al. 2020, appendix; lm-human-preferences' ``reward_gain``).

        Raises:
            ValueError: fewer than two texts, or all get the same score.
        """
        logits_B = self.logits(prompts, completions).double()
        spread = float(logits_B.std(correction=0)) if len(logits_B) > 1 else 0.0
        if not spread > 1e-6 * max(1.0, float(logits_B.abs().max())):
            raise ValueError(f"cannot normalise to {len(logits_B)} texts of equal scores: give more, and varied ones")
        self.gain = 1 / spread
        self.bias = -float(logits_B.mean()) / spread

    def save(self, folder: str | Path) -> None:
        """Write model and tokenizer as a Hugging Face sequence-classification folder.

        ``AutoModelForSequenceClassification.from_pretrained(folder)`` gives the same logits, on the same token rows.
        """
        values = {_GAIN: self.gain, _BIAS: self.bias, _LENGTH: self.max_length, _TIES: self.tie_threshold}
        for name, value in values.items():
            setattr(self.model.config, name, value)
        self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))


def _positions(model: PreTrainedModel) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or _NO_LIMIT)


def _room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    room = min(_positions(model), int(tokenizer.model_max_length))
    if room >= _NO_LIMIT:
        raise ValueError(f"{type(model).__name__} names no longest text: pass max_length=")
    return room
