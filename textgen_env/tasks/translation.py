"""Built-in task: English to French, in a corner of both languages that a small model can learn.

    the black cat does not want my apple
    French:   →   le chat noir ne veut pas ma pomme

Subject, verb and object, each noun with an article or another determiner and perhaps an adjective. French puts most
adjectives after the noun, bends determiner and adjective to its gender, puts the verb between the halves of a negation,
and there says "de" for "a": so a word by word translation is wrong. Nouns begin with consonants, hence nothing is
elided, and there is one right translation.

The reward is BLEU against it (``reward="chrf"``: chrF), its optimum 1 under either.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.own_data import or_own_data, read_data
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tasks.templates import distinct_prompts
from textgen_env.types import Prompt

TEMPLATE = "{prompt}\nFrench:"
Forms = tuple[str, str]
"""Masculine, feminine."""

DETERMINERS: Mapping[str, Forms] = {
    "the": ("le", "la"),
    "a": ("un", "une"),
    "my": ("mon", "ma"),
    "this": ("ce", "cette"),
}
NO = "de"
"""What "a" becomes in the object of a negated verb."""
BEFORE: Mapping[str, Forms] = {"big": ("grand", "grande"), "small": ("petit", "petite"), "pretty": ("joli", "jolie")}
AFTER: Mapping[str, Forms] = {"black": ("noir", "noire"), "white": ("blanc", "blanche"), "green": ("vert", "verte")}
SUBJECTS: tuple[Mapping[str, str], Mapping[str, str]] = (
    {"dog": "chien", "cat": "chat", "boy": "garçon", "king": "roi"},
    {"cow": "vache", "mouse": "souris", "girl": "fille", "queen": "reine"},
)
"""Masculine, feminine: the second group is feminine in French."""
OBJECTS: tuple[Mapping[str, str], Mapping[str, str]] = (
    {"bread": "pain", "book": "livre", "boat": "bateau", "garden": "jardin"},
    {"apple": "pomme", "house": "maison", "flower": "fleur", "letter": "lettre"},
)
VERBS: Mapping[str, tuple[str, str]] = {
    "sees": ("see", "voit"),
    "wants": ("want", "veut"),
    "finds": ("find", "trouve"),
    "sells": ("sell", "vend"),
    "draws": ("draw", "dessine"),
    "loses": ("lose", "perd"),
}
"""English with "she" -> without, as after "does not"; French."""


@or_own_data(
    partial(
        read_data, reward="bleu", prompt_field="source", reference_field="target", template="{prompt}\nTranslation:"
    )
)
def translation(
    num_prompts: int = 4000, seed: int = 0, negation: bool = True, reward: Literal["bleu", "chrf"] = "bleu"
) -> TextTask:
    """Sentences of 5 to 9 English words, each with its French translation as reference.

    Args:
        num_prompts: distinct sentences.
        seed: seeds the draw.
        negation: whether half of the sentences are negated.
        reward: "bleu" or "chrf"; the optimum is 1 under each.

    Your own data (``data=``, see `read_data`): columns ``source`` and ``target``. Pairs inside a column, as hub
    datasets have them, are reached by a dot: ``prompt_field="translation.en", reference_field="translation.de"``.

    >>> prompt = translation(num_prompts=20, seed=1).prompts()[0]
    >>> prompt.text, prompt.references
    ('the green king does not sell the white letter\\nFrench:', ('le roi vert ne vend pas la lettre blanche',))

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if reward not in ("bleu", "chrf"):
        raise ValueError(f"reward must be bleu or chrf; got {reward!r}")
    prompts = distinct_prompts(partial(_sentence, negation), num_prompts, seed, "num_prompts")
    return TextTask(
        "translation",
        TextTask.from_pairs(prompts).splits,
        vocabulary=_vocabulary(),
        max_new_tokens=12,
        reward=reward,
        oracle=reference_oracle,
    )


def _sentence(negation: bool, rng: random.Random) -> Prompt:
    subject, sujet = _noun_phrase(SUBJECTS, rng)
    thing, objet = _noun_phrase(OBJECTS, rng)
    third_person = rng.choice(tuple(VERBS))
    infinitive, verbe = VERBS[third_person]
    verb, verbal = [third_person], [verbe]
    if negation and rng.random() < 0.5:
        verb, verbal = ["does", "not", infinitive], ["ne", verbe, "pas"]
        if thing[0] == "a":  # "pas de pain", not "pas un pain"
            objet[0] = NO
    english, french = " ".join(subject + verb + thing), " ".join(sujet + verbal + objet)
    return Prompt(TEMPLATE.format(prompt=english), (french,))


def _noun_phrase(nouns: Sequence[Mapping[str, str]], rng: random.Random) -> tuple[list[str], list[str]]:
    """A determiner, perhaps an adjective, and a noun: in English and in French."""
    gender = rng.randrange(2)
    noun = rng.choice(tuple(nouns[gender]))
    determiner = rng.choice(tuple(DETERMINERS))
    english, french = [determiner, noun], [DETERMINERS[determiner][gender], nouns[gender][noun]]
    adjective = rng.choice(("", *BEFORE, *AFTER))
    if adjective:
        english.insert(1, adjective)
        french.insert(*(1, BEFORE[adjective][gender]) if adjective in BEFORE else (2, AFTER[adjective][gender]))
    return english, french


def _dictionary() -> dict[str, str]:
    """English word -> French word, masculine where there are two."""
    words = {english: forms[0] for table in (DETERMINERS, BEFORE, AFTER) for english, forms in table.items()}
    words |= {english: french for table in (*SUBJECTS, *OBJECTS) for english, french in table.items()}
    for third_person, (infinitive, french) in VERBS.items():
        words |= {third_person: french, infinitive: french}
    return words | {"does": "ne", "not": "pas"}


def _vocabulary() -> tuple[str, ...]:
    feminine = [forms[1] for table in (DETERMINERS, BEFORE, AFTER) for forms in table.values()]
    table = _dictionary()
    return tuple(dict.fromkeys([*table, *table.values(), *feminine, NO, "French:"]))


def word_by_word(prompt: Prompt) -> str:
    """A word of French for each word of English, in English order and all masculine."""
    table = _dictionary()
    return " ".join(table[word] for word in prompt.text.split()[:-1])


RUNG = Rung(
    random=0.0233,
    supervised=0.995,
    optimum=1.0,
    hack=Hack(
        "A word of French for every word of English, without order or agreement.",
        word_by_word,
        naive="rouge_1",
        naive_score=0.7558,
        robust_score=0.2717,
    ),
)
