"""Instructions and their answers: reading, the prompt they are written into, and splits by instruction."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgen_env import Prompt, TextMDP, TextTask, TextTokenizer
from textgen_env.lookup import did_you_mean
from textgen_env.tasks.dataset import FRACTIONS, SPLITS, Fractions, split_of
from textgen_env.tasks.records import Record, read_csv, read_jsonl

FIELDS = ("instruction", "input", "output")
DEFAULT_TEMPLATE = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
"""Alpaca's sections (Taori et al. 2023), without the sentence that introduces them."""
_GAP = re.compile(r"\{(\w+)\}")
_READERS = {".jsonl": read_jsonl, ".csv": read_csv}


@dataclass(frozen=True)
class Instruction:
    """A record, and the file it is from."""

    instruction: str
    input: str
    """"" where there is none."""
    output: str
    source: str


def read_instructions(path: str | Path) -> list[Instruction]:
    """The records of a .jsonl or .csv file: ``instruction``, ``output``, and perhaps ``input``; others are ignored.

    Raises:
        ValueError: neither kind of file, or a record is malformed; the message names file, line and field.
        OSError: the file cannot be read.
    """
    suffix = Path(path).suffix
    if suffix not in _READERS:
        raise ValueError(f"'{path}' is neither a .jsonl nor a .csv file of instructions")
    return [_instruction(record, str(path)) for record in _READERS[suffix](path)]


def _instruction(record: Record, source: str) -> Instruction:
    where, fields = record
    if "input" not in fields:
        near = difflib.get_close_matches("input", [name for name in fields if name not in FIELDS], n=1, cutoff=0.75)
        if near:  # it would be ignored without a word
            raise ValueError(f"{where}: unknown field '{near[0]}'; did you mean 'input'?")
    instruction, output = (_text(fields, name, where) for name in ("instruction", "output"))
    given = "" if fields.get("input") in (None, "") else _text(fields, "input", where)
    return Instruction(instruction, given, output, source)


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    if name not in fields:
        raise ValueError(f"{where}: no field '{name}'; {did_you_mean(name, fields)}")
    text = fields[name]
    if not isinstance(text, str):
        raise ValueError(f"{where}, field '{name}': expected a text, got {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{where}, field '{name}': the text is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}, field '{name}': lone surrogate {text[error.start]!r}, not valid Unicode") from error
    return text


# ---------------------------------------------------------------- the prompt


@dataclass(frozen=True)
class Template:
    """What an instruction and its input are written into.

    A paragraph (what blank lines part) that names ``{input}`` and not ``{instruction}`` is left out where there is no
    input. Other braces stay as they are.

    >>> Template("{instruction}\\n\\nText: {input}\\n\\nAnswer:").render("Say hello.")
    'Say hello.\\n\\nAnswer:'

    Raises:
        ValueError: it does not name ``{instruction}``, or names what is no field.
    """

    text: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        named = _GAP.findall(self.text)
        for name in named:
            if name not in FIELDS[:2]:
                raise ValueError(f"the template names '{{{name}}}'; {did_you_mean(name, FIELDS[:2])}")
        if "instruction" not in named:
            raise ValueError(f"template {self.text!r:.80} does not contain '{{instruction}}'")

    def render(self, instruction: str, input: str = "") -> str:
        """The prompt.

        Raises:
            ValueError: there is an input and no place for it.
        """
        paragraphs = self.text.split("\n\n")
        if input and not any("{input}" in paragraph for paragraph in paragraphs):
            raise ValueError("the record has an input, the template no '{input}'")
        if not input:
            paragraphs = [part for part in paragraphs if "{input}" not in part or "{instruction}" in part]
        values = {"instruction": instruction, "input": input}
        return _GAP.sub(lambda gap: values[gap[1]], "\n\n".join(paragraphs))


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's own way to write a user's message; an input stands below its instruction.

    Raises:
        ValueError: the tokenizer has none.
    """

    tokenizer: TextTokenizer

    def __post_init__(self) -> None:
        if not self.tokenizer.hf.chat_template:
            raise ValueError("the tokenizer has no chat template: leave --template chat out, or give a text")

    def render(self, instruction: str, input: str = "") -> str:
        """The prompt, up to where the answer begins."""
        message = {"role": "user", "content": f"{instruction}\n\n{input}" if input else instruction}
        text: str = self.tokenizer.hf.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        start = self.tokenizer.hf.bos_token
        # The tokenizer puts its start token before every prompt: not a second one.
        adds = start is not None and self.tokenizer.encode_prompt("a")[0] == self.tokenizer.hf.bos_token_id
        return text.removeprefix(start) if adds else text


def make_template(template: str, tokenizer: TextTokenizer | None) -> Template | ChatTemplate:
    """A template from what a user calls one: "default", "chat" (the tokenizer's), or a text with {instruction}.

    Raises:
        ValueError: the text is no template, or the tokenizer has no chat template (one not yet trained has none).
    """
    if template == "chat":
        if tokenizer is None:
            raise ValueError("a model from scratch has no chat template: give --model, or the template as a text")
        return ChatTemplate(tokenizer)
    return Template(DEFAULT_TEMPLATE if template == "default" else template)


# ---------------------------------------------------------------- splits


def side_of(instruction: str, fractions: Fractions = FRACTIONS) -> str:
    """The split of an instruction: the same for all its inputs and answers, whatever its case and white space."""
    return split_of(" ".join(instruction.split()).casefold(), fractions)


def split_instructions(
    records: Iterable[Instruction], fractions: Fractions = FRACTIONS
) -> dict[str, list[Instruction]]:
    """The records by split: no instruction is on two sides, and later records move none."""
    sides: dict[str, list[Instruction]] = {split: [] for split in SPLITS}
    for record in records:
        sides[side_of(record.instruction, fractions)].append(record)
    return sides


def as_task(
    sides: Mapping[str, Sequence[Instruction]], render: Callable[[str, str], str], name: str = "instructions"
) -> TextTask:
    """A task whose references are the answers; records of one prompt are one prompt with several.

    Raises:
        ValueError: no record is on the training side, or the template has no place for an input.
    """

    def prompts(records: Sequence[Instruction]) -> Iterator[Prompt]:
        for record in records:
            try:
                text = render(record.instruction, record.input)
            except ValueError as error:
                raise ValueError(f"{record.source}, instruction {record.instruction!r:.60}: {error}") from error
            yield Prompt(text, (record.output,), {"instruction": record.instruction, "source": record.source})

    if not sides["train"]:
        raise ValueError("no instruction is on the training side: give more, or raise the first of --split-fractions")
    return TextTask.from_pairs({split: list(prompts(records)) for split, records in sides.items()}, name=name)


# ---------------------------------------------------------------- lengths


@dataclass(frozen=True)
class Limits:
    """Most tokens of a prompt, and of an answer with its EOS."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of every prompt and answer (EOS included) of some tasks' prompts."""

    prompts: tuple[int, ...]
    answers: tuple[int, ...]

    def beyond(self, limits: Limits) -> int:
        """Pairs of which a part is longer than its limit."""
        return sum(
            prompt > limits.prompt or answer > limits.answer
            for prompt, answer in zip(self.prompts, self.answers, strict=True)
        )


def lengths_of(task: TextTask, tokenizer: TextTokenizer) -> Lengths:
    """One entry a (prompt, answer) pair of all splits."""
    found = [
        (len(tokenizer.encode_prompt(prompt.text)), len(tokenizer.encode_completion(prompt.text, answer)))
        for prompts in task.splits.values()
        for prompt in prompts
        for answer in prompt.references
    ]
    return Lengths(tuple(prompt for prompt, _ in found), tuple(answer for _, answer in found))


def limits_for(lengths: Lengths, room: int | None, max_prompt: int | None, max_answer: int | None) -> Limits:
    """The limits asked for; by default the longest, and where the model has no room for both, the prompt gives way.

    Raises:
        ValueError: the limits asked for need more positions than the model has.
    """
    prompt, answer = max_prompt or max(lengths.prompts), max_answer or max(lengths.answers)
    if room is None or prompt + answer <= room:
        return Limits(prompt, answer)
    if max_prompt is None and answer < room:
        return Limits(room - answer, answer)
    if max_answer is None and prompt < room:
        return Limits(prompt, room - prompt)
    if max_prompt is None and max_answer is None:
        return Limits(room - room // 2, room // 2)
    raise ValueError(
        f"prompts of {prompt} and answers of {answer} tokens need more than the model's {room} positions: "
        "lower --max-prompt-tokens and --max-new-tokens"
    )


def fitting(task: TextTask, tokenizer: TextTokenizer, limits: Limits) -> TextTask:
    """The task without the answers that do not fit, and the prompts that do not or have none left.

    Raises:
        ValueError: nothing is left to learn from.
    """

    def kept(prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        for prompt in prompts:
            if len(tokenizer.encode_prompt(prompt.text)) > limits.prompt:
                continue
            answers = tuple(
                text
                for text in prompt.references
                if len(tokenizer.encode_completion(prompt.text, text)) <= limits.answer
            )
            if answers:
                yield Prompt(prompt.text, answers, prompt.metadata)

    splits = {split: tuple(kept(prompts)) for split, prompts in task.splits.items()}
    if not splits.get("train"):
        raise ValueError(f"no training record fits {limits.prompt} + {limits.answer} tokens: raise the limits")
    return TextTask(task.name, splits)


def rules(task: TextTask, tokenizer: TextTokenizer, limits: Limits, split: str = "train") -> TextMDP:
    """The environment's rules on a split. Prompts beyond the limit are cut in silence: the caller has said so."""
    mdp = TextMDP(
        task,
        "exact_match",
        tokenizer,
        max_prompt_tokens=limits.prompt,
        max_new_tokens=limits.answer,
        split=split,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(len(mdp.prompts)):
            mdp.prompt_ids(index)
    return mdp
