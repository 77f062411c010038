"""Built-in task: follow the instructions of the prompt, all at once.

    LEN 4 START c ; ; CONTAINS a FORBID e   →   c b a a <eos>

A prompt has two to four of five demands: LEN (so many words), START and END (with this word), CONTAINS
and FORBID (that word). Its words are distinct and its LEN has room for them, so that every prompt can be satisfied: the
optimum is 1. A prompt *is* a combination of demands, so the held-out ones are combinations never seen.

It is instruction following in miniature: what pays depends on every part of the prompt, many answers are right, and
demands that are easy alone get in each other's way. They are written as `reward_models.Instructions` reads them, which
scores every answer as the task's own reward does: ``reward="fraction"`` pays the share of the demands that an answer
meets, ``"all"`` pays 1 where it meets them all. A word is what white space parts; padding leaves no trace.

Means over the test split:

===========================================  =====  ==================
answers                                      score  counting CONTAINS
===========================================  =====  ==================
uniformly random tokens                      .266
the word that CONTAINS asks for, alone       .413   1.000: fooled
a supervised model (see `benchmarks`)        .977
the optimum                                  1.000  1.000
===========================================  =====  ==================
"""

from __future__ import annotations

import itertools
import math
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textgen_env.lookup import did_you_mean
from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import draw_numbers, reference_oracle
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.types import Prompt

Pay = Literal["fraction", "all"]

KINDS = ("LEN", "START", "END", "CONTAINS", "FORBID")
_PLACED = ("START", "END", "CONTAINS")
"""The kinds whose word takes a place of its own in the answer."""
_PAYS = ("fraction", "all")
_WORDS = string.ascii_lowercase
BLANK = ";"
"""Takes the places of a kind that is not asked for. It parts instructions; it is no word, so LEN does not count it."""


def constraints(
    words: int = 7,
    shortest: int = 3,
    longest: int = 4,
    fewest: int = 2,
    most: int = 4,
    reward: Pay = "fraction",
    answers: int = 1,
    aligned: bool = True,
    num_prompts: int | None = None,
    seed: int = 0,
) -> TextTask:
    """Prompts of ``fewest`` to ``most`` demands; every answer that meets them all is right.

    Args:
        words: how many different ones there are, at most 26 (a to z).
        shortest: the least LEN. Below 3 START, CONTAINS and END compete for places.
        longest: the greatest LEN. The cap on an answer is one more, for the EOS.
        fewest: demands of a prompt, at least.
        most: demands of a prompt, at most 5.
        reward: "fraction" or "all" of the demands.
        answers: references of a prompt: right answers, drawn at random.
        aligned: every kind has its places in the prompt, blank where it is not asked for. Without, the demands stand
            close, and are found by their names alone: much harder for a small transformer.
        num_prompts: distinct prompts, drawn with ``seed``. Default: all, or 4096 where there are more. There are
            4,172 by default.
        seed: seeds the draws.

    The metadata of a prompt are its ``constraints``, such as ``("LEN 4", "START c")``.

    >>> constraints(most=2).prompts()[0].text
    'LEN 3 START a ; ; ; ; ; ;'

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 1 <= fewest <= most <= len(KINDS):
        raise ValueError(f"1 <= fewest <= most <= {len(KINDS)} must hold, got fewest={fewest} and most={most}")
    if not most <= words <= len(_WORDS):
        raise ValueError(f"words must lie between most={most}, all being distinct, and {len(_WORDS)}, got {words}")
    if not 1 <= shortest <= longest >= len(_PLACED):
        raise ValueError(
            f"1 <= shortest <= longest >= {len(_PLACED)} must hold (START, END and CONTAINS each want a place), got "
            f"shortest={shortest} and longest={longest}"
        )
    if answers < 1:
        raise ValueError(f"answers must be at least 1, got {answers}")
    met = ConstraintsMet(reward)
    forms = [
        Form(kinds, words, shortest, longest)
        for count in range(fewest, most + 1)
        for kinds in itertools.combinations(KINDS, count)
    ]

    def prompt(number: int) -> Prompt:
        for form in forms:
            if number < form.size:
                break
            number -= form.size
        demands = form.demands(number)
        written = {kind: f"{kind} {value}" for kind, value in demands.items()}
        text = " ".join(written.get(kind, f"{BLANK} {BLANK}") for kind in (KINDS if aligned else written))
        rng = random.Random(f"{seed} {text}")
        references = tuple(form.answer(demands, rng) for _ in range(answers))
        return Prompt(text, references, {"constraints": tuple(written.values())})

    return TextTask(
        "constraints",
        TextTask.from_pairs(map(prompt, draw_numbers(sum(form.size for form in forms), num_prompts, seed))).splits,
        vocabulary=(*_WORDS[:words], *map(str, range(shortest, longest + 1)), *KINDS, BLANK),
        max_new_tokens=longest + 1,
        reward=met,
        oracle=reference_oracle,
    )


@dataclass(frozen=True)
class Form:
    """All combinations of demands of the same kinds that can be met: distinct words, and a LEN with room for them."""

    kinds: tuple[str, ...]
    words: int
    shortest: int
    longest: int

    @property
    def lengths(self) -> range:
        """How long an answer may be."""
        return range(max(self.shortest, sum(kind in self.kinds for kind in _PLACED)), self.longest + 1)

    @property
    def size(self) -> int:
        """How many combinations there are."""
        arrangements = math.perm(self.words, sum(kind != "LEN" for kind in self.kinds))
        return arrangements * (len(self.lengths) if "LEN" in self.kinds else 1)

    def demands(self, number: int) -> dict[str, str]:
        """Kind -> value of one combination, 0 <= number < size."""
        left = list(_WORDS[: self.words])
        values = {}
        for kind in self.kinds:
            choices = [str(length) for length in self.lengths] if kind == "LEN" else left
            number, index = divmod(number, len(choices))
            values[kind] = choices.pop(index)
        return values

    def answer(self, demands: Mapping[str, str], rng: random.Random) -> str:
        """A random answer that meets the demands."""
        length = int(demands["LEN"]) if "LEN" in demands else rng.choice(self.lengths)
        allowed = [word for word in _WORDS[: self.words] if word != demands.get("FORBID")]
        answer = rng.choices(allowed, k=length)
        free = list(range(length))
        if "START" in demands:
            answer[free.pop(0)] = demands["START"]
        if "END" in demands:
            answer[free.pop()] = demands["END"]
        if "CONTAINS" in demands:
            answer[rng.choice(free)] = demands["CONTAINS"]
        return " ".join(answer)


@dataclass(frozen=True)
class ConstraintsMet:
    """How many of its prompt's demands an answer meets, as a share, or whether it meets them all.

    Raises:
        ValueError: an unknown pay or kind.
    """

    name: ClassVar[str] = "constraints_met"
    kind: ClassVar[str] = "terminal"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    pay: Pay = "fraction"
    kinds: Sequence[str] = KINDS
    """The kinds that count. An answer to a prompt with none of them meets all there are, and earns 1."""

    def __post_init__(self) -> None:
        if self.pay not in _PAYS:
            raise ValueError(f"reward must be one of {', '.join(_PAYS)}; got {self.pay!r}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"unknown kind {kind!r}; {did_you_mean(kind, KINDS)}")

    def __call__(self, completions: list[str], constraints: list[Sequence[str]]) -> list[float]:
        """One number a completion."""
        return [self._one(text.split(), demands) for text, demands in zip(completions, constraints, strict=True)]

    def _one(self, words: list[str], demands: Sequence[str]) -> float:
        asked = [demand.split() for demand in demands]
        met = [meets(words, kind, value) for kind, value in asked if kind in self.kinds]
        return float(all(met)) if self.pay == "all" else sum(met) / len(met) if met else 1.0


def meets(words: Sequence[str], kind: str, value: str) -> bool:
    """Whether an answer meets one demand."""
    if kind == "LEN":
        return len(words) - words.count(BLANK) == int(value)
    if kind == "START":
        return words[:1] == [value]
    if kind == "END":
        return words[-1:] == [value]
    return (value in words) == (kind == "CONTAINS")


def _contained(prompt: Prompt) -> str:
    demands = dict(demand.split() for demand in prompt.metadata["constraints"])
    return str(demands.get("CONTAINS", ""))


RUNG = Rung(
    random=0.2659,
    supervised=0.9767,
    optimum=1.0,
    hack=Hack(
        "Writes the word that CONTAINS asks for, or nothing where it does not, and heeds nothing else.",
        _contained,
        naive=ConstraintsMet(kinds=("CONTAINS",)),
        naive_score=1.0,
        robust_score=0.4135,
    ),
)
