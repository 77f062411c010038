"""The options of pretraining, apart from the objective's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from agents.config import option
from agents.policy import Precision
from agents.training_loop import LoopConfig

_FROM_SCRATCH = ("layers", "width", "heads")


@dataclass
class PretrainConfig(LoopConfig):
    """Options of the fit; the items of its loop are blocks."""

    epochs: float = option(3.0, "passes over the blocks; may be a fraction")
    batch_size: int = option(8, "blocks an optimiser step")


@dataclass
class PretrainSettings:
    """What is pretrained, and where it goes; how is `PretrainConfig`'s and `ObjectiveConfig`'s."""

    output: str | None = option(None, "the folder to write, a Hugging Face model and its tokenizer")
    validation_share: float = option(0.1, "share of the documents to hold out; a document's hash decides")
    block_size: int | None = option(
        None, "tokens of a block, the longest context; by default 256, or the model's positions where they are fewer"
    )
    model: Any = option(None, "a Hugging Face causal LM to go on from, by hub name or folder; by default a fresh GPT-2")
    layers: int = option(2, "transformer blocks of the model from scratch")
    width: int = option(128, "its hidden width")
    heads: int = option(4, "its attention heads")
    tokenizer: Any = option(None, "a hub name or folder; by default the model's own, or one trained on the texts")
    vocab_size: int = option(1024, "size of the tokenizer that is trained")
    checkpoint_every: int | None = option(
        None, "steps from one validation and checkpoint to the next; by default a tenth of all"
    )
    precision: Precision = option("float32", "bf16 is autocast with float32 log-softmax, values and losses")
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory for a third more time"
    )
    seed: int = option(0, "seeds weights and order")
    device: str = option("auto", "auto, cpu, cuda, ...")

    def __post_init__(self) -> None:
        for name in ("block_size", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in (*(_FROM_SCRATCH if self.model is not None else ()), "vocab_size"):
            if getattr(self, name) == defaults[name]:
                continue
            if self.model is not None:
                raise ValueError(f"model '{self.model}' has its own {name}: leave it out")
            if self.tokenizer is not None:
                raise ValueError(f"tokenizer '{self.tokenizer}' has its own {name}: leave it out")
