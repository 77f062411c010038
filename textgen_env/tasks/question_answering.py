"""Built-in task: a short passage about some people, a question about one of them, and the answer, which stands in it.

    Clara lives in Arlow . Rosa lives in Brent .
    Question: Where does Rosa live ?
    Answer:   →   Rosa lives in Brent

Every sentence tells one fact of one person; no two share a town, a trade or an animal. Questions go from the person to
the fact, or back from the fact to the person ("Who lives in Brent ?"). The answer is a sentence, and it is found by
reading alone: what the question does not say stands in one sentence of the passage.

The reward is 1 for the right answer and 0 for any other (``exact_match``), its optimum 1. ``"token_f1"``, the F1 of
the answer's words as in SQuAD (Rajpurkar et al. 2016), has the same optimum and can be hacked: most of a right answer
can be had from the question (`RUNG`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.news_templates import NAMES
from textgen_env.tasks.own_data import or_own_data, read_data
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tasks.templates import distinct_prompts
from textgen_env.types import Prompt

TEMPLATE = "{passage}\nQuestion: {prompt}\nAnswer:"
PEOPLE = NAMES["first"][:8]


@dataclass(frozen=True)
class Fact:
    """One kind of fact. Gaps: ``{person}`` and ``{value}``."""

    values: tuple[str, ...]
    statements: tuple[str, ...]
    what: str
    who: str


FACTS: Mapping[str, Fact] = {
    "town": Fact(
        NAMES["city"][:8],
        ("{person} lives in {value} .", "the home of {person} is in {value} .", "in {value} you can meet {person} ."),
        what="Where does {person} live ?",
        who="Who lives in {value} ?",
    ),
    "trade": Fact(
        ("baker", "doctor", "farmer", "nurse", "painter", "pilot", "singer", "teacher"),
        ("{person} is a {value} .", "{person} works as a {value} .", "the trade of {person} is that of a {value} ."),
        what="What trade has {person} ?",
        who="Who is a {value} ?",
    ),
    "animal": Fact(
        ("cat", "dog", "duck", "goat", "horse", "parrot", "pony", "rabbit"),
        ("{person} has a {value} .", "a {value} belongs to {person} .", "the pet of {person} is a {value} ."),
        what="Which animal has {person} ?",
        who="Who has a {value} ?",
    ),
}


@or_own_data(
    partial(read_data, reward="token_f1", prompt_field="question", reference_field="answer", template=TEMPLATE)
)
def question_answering(
    facts: int = 2,
    phrasings: int = 1,
    num_prompts: int = 4000,
    seed: int = 0,
    reward: Literal["exact_match", "token_f1"] = "exact_match",
) -> TextTask:
    """Passages of some facts, each with a question and the answer as its reference.

    Args:
        facts: sentences of a passage, at most 8, and as many people to choose from.
        phrasings: in how many ways a fact is told, at most 3.
        num_prompts: distinct pairs of passage and question.
        seed: seeds the draw.
        reward: "exact_match" or "token_f1"; the optimum is 1 under each.

    The metadata of a prompt are its ``passage`` and the ``short_answer``, the one word that the question lacks.

    Your own data (``data=``, see `read_data`): columns ``passage``, ``question`` and ``answer``. Where the passage has
    another name, or there is none, say so in the template: ``template="{context} Question: {prompt} Answer:"``. SQuAD's
    answers are ``reference_field="answers.text"``.

    >>> prompt = question_answering(num_prompts=20, seed=1).prompts()[0]
    >>> print(prompt.text, prompt.references[0])
    Felix has a goat . Felix lives in Corwin .
    Question: Who lives in Corwin ?
    Answer: Felix lives in Corwin

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    for name, value, highest in (("facts", facts, len(PEOPLE)), ("phrasings", phrasings, 3)):
        if not 1 <= value <= highest:
            raise ValueError(f"{name} must lie between 1 and {highest}, got {value}")
    if reward not in ("exact_match", "token_f1"):
        raise ValueError(f"reward must be exact_match or token_f1; got {reward!r}")
    prompts = distinct_prompts(partial(_item, facts, phrasings), num_prompts, seed, "num_prompts")
    return TextTask(
        "question_answering",
        TextTask.from_pairs(prompts).splits,
        vocabulary=_vocabulary(),
        max_new_tokens=8,
        reward=reward,
        oracle=reference_oracle,
    )


def _item(facts: int, phrasings: int, rng: random.Random) -> Prompt:
    people = rng.sample(PEOPLE, facts)
    values = {kind: rng.sample(fact.values, facts) for kind, fact in FACTS.items()}
    known = rng.sample([(index, kind) for index in range(facts) for kind in FACTS], facts)
    casts = [{"person": people[index], "value": values[kind][index]} for index, kind in known]
    told = [
        rng.choice(FACTS[kind].statements[:phrasings]).format_map(cast)
        for (_, kind), cast in zip(known, casts, strict=True)
    ]
    asked = rng.randrange(facts)
    kind, cast = known[asked][1], casts[asked]
    backwards = rng.random() < 0.5
    question = (FACTS[kind].who if backwards else FACTS[kind].what).format_map(cast)
    metadata = {"passage": " ".join(told), "short_answer": cast["person" if backwards else "value"]}
    text = TEMPLATE.format(passage=metadata["passage"], prompt=question)
    return Prompt(text, (_answer(kind, cast),), metadata)


def _answer(kind: str, cast: Mapping[str, str]) -> str:
    return FACTS[kind].statements[0].format_map(cast).removesuffix(" .")


def _vocabulary() -> tuple[str, ...]:
    patterns = [pattern for fact in FACTS.values() for pattern in (*fact.statements, fact.what, fact.who)]
    values = [value for fact in FACTS.values() for value in fact.values]
    words = " ".join([TEMPLATE, *patterns]).split()
    return tuple(dict.fromkeys([*(word for word in words if "{" not in word), *PEOPLE, *values]))


def only_the_question(prompt: Prompt) -> str:
    """The answer without the word that was asked for: "Rosa lives in"."""
    words = prompt.references[0].split()
    return " ".join(word for word in words if word != prompt.metadata["short_answer"])


RUNG = Rung(
    random=0.0,
    supervised=0.788,
    optimum=1.0,
    hack=Hack(
        "The answer without the word that was asked for, which the question gives away.",
        only_the_question,
        naive="token_f1",
        naive_score=0.8185,
        robust_score=0.0,
    ),
)
