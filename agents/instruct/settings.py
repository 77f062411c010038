"""The options of instruction tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from agents.config import check_choice, option
from agents.policy import Precision
from textgen_env.tasks.dataset import FRACTIONS

TooLong = Literal["refuse", "cut", "drop"]
_FROM_SCRATCH = ("layers", "width", "heads", "vocab_size")


@dataclass
class InstructSettings:
    """The options of instruction tuning, apart from those of the fit."""

    data: tuple[str, ...] = field(default=(), metadata={"help": ".jsonl or .csv files of instructions and answers"})
    model: str | None = option(
        None, "a Hugging Face causal LM, by hub name or folder; by default a small GPT-2 from scratch"
    )
    previous: str | None = option(None, "the folder of an earlier result: go on from its model, its rounds, its data")
    output: str | None = option(None, "the folder to write")
    layers: int = option(2, "transformer blocks of the model from scratch")
    width: int = option(128, "its hidden width")
    heads: int = option(4, "its attention heads")
    vocab_size: int = option(1024, "size of the tokenizer trained for it")

    by_round: bool = option(False, "each file is a round of its own; by default all are one")
    replay: bool = option(True, "a round also learns the files of the rounds before it")
    template: str = option(
        "default",
        "what a record is written into: default, chat (the tokenizer's own), or a text with {instruction} and {input}",
    )
    split_fractions: tuple[float, float, float] = option(
        FRACTIONS, "shares of train, validation and test; an instruction's hash decides where all its records go"
    )
    max_prompt_tokens: int | None = option(None, "longest prompt; by default that of the records")
    max_new_tokens: int | None = option(None, "longest answer, EOS included; by default that of the records")
    too_long: TooLong = option("refuse", "records beyond these: refuse the data, cut or drop them")
    eval_prompts: int = option(200, "held-out prompts of each file that are answered, at most")

    seed: int = option(0, "seeds fresh weights, the order of the records and the choice of held-out prompts")
    device: str = option("auto", "auto, cpu, cuda, ...")
    precision: Precision = option("float32", "bf16 is autocast with float32 log-softmax and losses")
    threads: int = option(1, "CPU threads")

    def __post_init__(self) -> None:
        self.data = (self.data,) if isinstance(self.data, str) else tuple(map(str, self.data))
        first, second, third = self.split_fractions  # a list where it was read from JSON
        self.split_fractions = (first, second, third)
        if not self.data:
            raise ValueError("name the data: one .jsonl or .csv file of instructions, or several")
        for path in self.data:
            if self.data.count(path) > 1:
                raise ValueError(f"'{path}' is named twice")
        if self.output is None:
            raise ValueError("say --output: the folder to write")
        check_choice("too_long", self.too_long, TooLong)
        for name in ("eval_prompts", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.model is not None and self.previous is not None:
            raise ValueError("an earlier result brings its model: give either model or previous (--from), not both")
        if self.model is not None or self.previous is not None:
            self.refuse_changed(_FROM_SCRATCH, f"model '{self.model or self.previous}' has its own: leave it out")

    def refuse_changed(self, names: Sequence[str], why: str) -> None:
        """An option that would be ignored is an error."""
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} has no effect here, {why}")
