"""Built-in task: classification as generation. A text, and the word of its topic.

    The Bears were far too strong for the Lions on Friday. Trains to Arlow will run 4 minutes late this week.
    Topic:   →   sport

The texts are sentences of `news_summary`: one about an event, and one on no topic at all, in any order.

The reward is 1 for the right word and nothing but it (``exact_match``), its optimum 1. With ``mask=True`` only the
labels can be written, which makes it a bandit over as many arms.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from textgen_env.tasks.dataset import FRACTIONS, Fractions, TextTask
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.news_summary import casts
from textgen_env.tasks.news_templates import ASIDES, TOPICS
from textgen_env.tasks.own_data import or_own_data, read_data
from textgen_env.tasks.records import field_of
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tasks.templates import distinct_prompts, sentence
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Prompt

TEMPLATE = "{prompt}\nTopic:"
LABELS = tuple(TOPICS)
_DEFAULT_TOPICS = 4


@dataclass(frozen=True)
class OneOf:
    """Allows the tokens of some texts, and EOS after a whole one (see ``TextMDP.allowed_tokens``)."""

    texts: tuple[str, ...]

    def __call__(self, prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
        """The ids that go on towards one of the texts; EOS where none is left."""
        done = len(actions)
        rows = [_encoded(tokenizer, prompt.text, text) for text in self.texts]
        allowed = {row[done] for row in rows if len(row) > done and row[:done] == tuple(actions)}
        return sorted(allowed) or list(tokenizer.eos_ids)


@lru_cache(maxsize=2**15)
def _encoded(tokenizer: TextTokenizer, prompt: str, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode_completion(prompt, text).tolist())


def read_classes(
    data: Any,
    *,
    labels: Sequence[str] | None = None,
    mask: bool = False,
    prompt_field: str = "text",
    reference_field: str = "label",
    template: str = TEMPLATE,
    reward: Any = "exact_match",
    name: str | None = None,
    fractions: Fractions = FRACTIONS,
    load_kwargs: Mapping[str, Any] | None = None,
) -> TextTask:
    """Labelled texts of a user's own.

    Args:
        data: see `read_data`, as for the arguments not told here.
        labels: the names of classes that the data numbers from 0. (A dataset that names its classes needs none.)
        mask: allow the labels that occur, and nothing else.

    Raises:
        ValueError: a class is a number, and ``labels`` does not name it.
    """

    def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            number = field_of(row, reference_field)
        except KeyError:
            return row  # Columns says what is missing
        if not isinstance(number, int):
            return row
        if labels is None or not 0 <= number < len(labels):
            known = "labels=('negative', 'positive')" if labels is None else f"labels has {len(labels)} names"
            raise ValueError(f"class {number} in column '{reference_field}' has no name: {known}")
        return {**row, reference_field: labels[number]}

    task = read_data(
        data,
        reward=reward,
        prompt_field=prompt_field,
        reference_field=reference_field,
        template=template,
        name=name,
        fractions=fractions,
        load_kwargs=load_kwargs,
        change=named,
    )
    found = {label for prompts in task.splits.values() for prompt in prompts for label in prompt.references}
    return dataclasses.replace(task, allowed_tokens=OneOf(tuple(sorted(found))) if mask else None)


@or_own_data(read_classes)
def classification(
    topics: int = _DEFAULT_TOPICS, num_prompts: int = 2000, seed: int = 0, mask: bool = False
) -> TextTask:
    """Texts of two sentences, each with the word of its topic as reference.

    Args:
        topics: how many there are, at most 7.
        num_prompts: distinct texts.
        seed: seeds the draw.
        mask: allow the labels only (``allowed_tokens``).

    Your own data (``data=``, see `read_classes`): columns ``text`` and ``label``.

    >>> classification(num_prompts=20, seed=1).prompts()[0].references
    ('business',)

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 2 <= topics <= len(LABELS):
        raise ValueError(f"topics must lie between 2 and {len(LABELS)}, got {topics}")
    labels = LABELS[:topics]
    prompts = distinct_prompts(partial(_item, labels), num_prompts, seed, "num_prompts")
    return TextTask(
        "classification",
        TextTask.from_pairs(prompts).splits,
        max_new_tokens=12,
        reward="exact_match",
        oracle=reference_oracle,
        allowed_tokens=OneOf(labels) if mask else None,
    )


def _item(labels: Sequence[str], rng: random.Random) -> Prompt:
    label = rng.choice(labels)
    event = rng.choice(TOPICS[label].events)
    about, beside = casts(rng, 2)
    about["thing"] = rng.choice(event.things)
    told = [sentence(rng.choice(event.leads), about), sentence(rng.choice(ASIDES), beside)]
    rng.shuffle(told)
    return Prompt(TEMPLATE.format(prompt=" ".join(told)), (label,))


def contains_reference(completions: list[str], references: list[list[str]]) -> list[float]:
    """1 where a reference stands somewhere in the completion, whatever else does: how verifiers often look."""
    return [float(any(each in text for each in known)) for text, known in zip(completions, references, strict=True)]


def every_label(prompt: Prompt) -> str:
    """All labels that there are by default, one after the other."""
    return " ".join(LABELS[:_DEFAULT_TOPICS])


RUNG = Rung(
    random=0.0,
    supervised=1.0,
    optimum=1.0,
    hack=Hack(
        "All labels, one after the other.",
        every_label,
        naive=contains_reference,
        naive_score=1.0,
        robust_score=0.0,
    ),
)
