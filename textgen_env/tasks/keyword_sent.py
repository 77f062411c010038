"""Built-in task: a sentence with the prompt's keywords in it (CommonGen, Lin et al. 2020, in miniature).

    old cat finds =   →   the old cat finds the dog <eos>

The sentences are those of a small grammar, optional parts in brackets:

    sentence → phrase (transitive phrase | intransitive [adverb]) [preposition phrase]
    phrase   → determiner [adjective] noun

    reward   = gate(it is a sentence) × coverage − .01 × length

Coverage is the share of the keywords that are there, length is in words; a word is what white space parts, padding
leaves no trace. The gate makes the reward sparse: a random text is hardly ever a sentence, and what is none earns less
than the empty answer. The references are random sentences with all keywords, so that a supervised model learns to
write what counts, but longer than needed.

The optimum is exact. A word belongs to one class, so a text is a sentence if its classes are one of the grammar's 24
sequences (`FORMS`); and of all sentences of one such form the best has as many keywords as the form has places for
them. Trying the 24 forms is trying every sentence, 15,456,168 by default.

Means over the test split:

===========================================  =====  ==================
answers                                      score  without the gate
===========================================  =====  ==================
uniformly random tokens                      −.099
the keywords alone                           −.030  .970: fooled
a supervised model (see `benchmarks`)        .880
the references                               .919   .919
the optimum                                  .941   .941
===========================================  =====  ==================
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import EOS_ID, draw_numbers, word_ids
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Prompt

Form = tuple[str, ...]
"""A sequence of word classes."""
Lexicon = Mapping[str, Sequence[str]]
"""Word class -> its words."""

SEPARATOR = "="
_CLOSED: Lexicon = {"determiner": ("the", "this"), "preposition": ("near", "behind", "under", "with")}
_OPEN: Lexicon = {
    "adjective": ["old", "big", "red", "happy", "small", "young", "tall", "quiet", "brave", "clever"],
    "noun": ["dog", "cat", "girl", "boy", "bird", "horse", "king", "ball", "tree", "box"],
    "transitive": ["finds", "sees", "chases", "likes", "follows", "holds", "hears", "helps", "wants", "draws"],
    "intransitive": ["sleeps", "runs", "sings", "waits", "falls", "jumps", "dances", "laughs", "works", "swims"],
    "adverb": ["slowly", "often", "well", "alone", "gladly", "again", "outside", "badly", "daily", "early"],
}
"""The classes that keywords are of; a task takes the first words of each."""
_MOST_WORDS, _MOST_KEYWORDS = 10, 4


def _forms() -> tuple[Form, ...]:
    phrases: tuple[Form, ...] = (("determiner", "noun"), ("determiner", "adjective", "noun"))
    predicates = [("intransitive",), ("intransitive", "adverb"), *(("transitive", *phrase) for phrase in phrases)]
    places = [(), *(("preposition", *phrase) for phrase in phrases)]
    return tuple(sorted((sum(parts, ()) for parts in itertools.product(phrases, predicates, places)), key=len))


FORMS = _forms()
"""The forms of all sentences, the shortest first."""
_LONGEST = len(FORMS[-1])
_BEGINNINGS = frozenset(form[:end] for form in FORMS for end in range(len(form) + 1))
_COUNTS = {form: Counter(form) for form in FORMS}
_CLASS_OF = {word: name for name, words in {**_CLOSED, **_OPEN}.items() for word in words}


def keyword_sent(
    keywords: int = 3,
    words: int = 6,
    length_cost: float = 0.01,
    num_prompts: int | None = None,
    seed: int = 0,
    mask: bool = False,
) -> TextTask:
    """Prompts of distinct keywords that fit into one sentence, and a separator; the answer is such a sentence.

    Args:
        keywords: how many a prompt has, at most 4.
        words: how many there are of each class that keywords are of, at most 10: adjectives, nouns, transitive and
            intransitive verbs, adverbs.
        length_cost: the price of a word, where all keywords together earn 1.
        num_prompts: distinct prompts, drawn with ``seed``. Default: all, or 4096 where there are more. There are
            1,840 by default.
        seed: seeds the draws.
        mask: allow only words that a sentence can go on with, and EOS only after one.

    The metadata of a prompt are its ``keywords``.

    >>> keyword_sent().prompts()[0].text
    'old big happy ='

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    for name, value, most in (("keywords", keywords, _MOST_KEYWORDS), ("words", words, _MOST_WORDS)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must lie between 1 and {most}, got {value}")
    if length_cost < 0:
        raise ValueError(f"length_cost must be at least 0, got {length_cost}")
    lexicon: Lexicon = {**_CLOSED, **{name: members[:words] for name, members in _OPEN.items()}}
    open_words = [word for name in _OPEN for word in lexicon[name]]
    fitting = [chosen for chosen in itertools.combinations(open_words, keywords) if covering(classes_of(chosen))]

    def prompt(number: int) -> Prompt:
        chosen = fitting[number]
        text = " ".join([*chosen, SEPARATOR])
        rng = random.Random(f"{seed} {text}")
        reference = fill(rng.choice(covering(classes_of(chosen))), chosen, lexicon, rng)
        return Prompt(text, (reference,), {"keywords": chosen})

    vocabulary = (*itertools.chain.from_iterable(lexicon.values()), SEPARATOR)
    reward = KeywordSentence(length_cost)
    return TextTask(
        "keyword_sent",
        TextTask.from_pairs(map(prompt, draw_numbers(len(fitting), num_prompts, seed))).splits,
        vocabulary=vocabulary,
        max_new_tokens=_LONGEST + 1,
        reward=reward,
        oracle=reward.best_answer,
        allowed_tokens=GrammarMask(vocabulary) if mask else None,
    )


def classes_of(words: Sequence[str]) -> Form:
    """The class of each word; "" of one that the grammar does not have."""
    return tuple(_CLASS_OF.get(word, "") for word in words)


def is_sentence(words: Sequence[str]) -> bool:
    """Whether the grammar makes these words.

    >>> is_sentence("the dog sleeps".split()), is_sentence("dog the sleeps".split())
    (True, False)
    """
    return classes_of(words) in _COUNTS


@functools.lru_cache(maxsize=4096)
def covering(classes: Form) -> tuple[Form, ...]:
    """The forms with places for words of all these classes."""
    return tuple(form for form, places in _COUNTS.items() if Counter(classes) <= places)


def fill(form: Form, keywords: Sequence[str], lexicon: Lexicon, rng: random.Random) -> str:
    """A text of this form: as many keywords as it has places for, each at a random one; else random words."""
    words = [rng.choice(lexicon[name]) for name in form]
    places: dict[str, list[int]] = {}
    for place in rng.sample(range(len(form)), len(form)):
        places.setdefault(form[place], []).append(place)
    for keyword in keywords:
        if free := places.get(_CLASS_OF[keyword]):
            words[free.pop()] = keyword
    return " ".join(words)


@dataclass(frozen=True)
class KeywordSentence:
    """The share of its keywords that a sentence has, nothing for what is no sentence; less the price of all words."""

    name: ClassVar[str] = "keyword_sentence"
    kind: ClassVar[str] = "terminal"

    length_cost: float = 0.01
    gate: bool = True
    """Whether only sentences are paid for their keywords."""

    def __call__(self, completions: list[str], keywords: list[Sequence[str]]) -> list[float]:
        """One number a completion."""
        return [self._one(text.split(), wanted) for text, wanted in zip(completions, keywords, strict=True)]

    def _one(self, words: list[str], wanted: Sequence[str]) -> float:
        coverage = sum(keyword in words for keyword in wanted) / len(wanted)
        return coverage * (is_sentence(words) or not self.gate) - self.length_cost * len(words)

    def best_answer(self, prompt: Prompt) -> str:
        """The answer that earns most: a sentence, or none at all where its words cost more than they earn."""
        keywords = prompt.metadata["keywords"]
        wanted = Counter(classes_of(keywords))

        def earns(form: Form) -> float:
            return (wanted & _COUNTS[form]).total() / len(keywords) - self.length_cost * len(form)

        best = max(FORMS, key=earns)
        first_words = {name: words[:1] for name, words in {**_CLOSED, **_OPEN}.items()}
        return fill(best, keywords, first_words, random.Random(0)) if earns(best) > 0 else ""


@dataclass(frozen=True)
class GrammarMask:
    """Which tokens a sentence can go on with, in the game's own vocabulary."""

    vocabulary: tuple[str, ...]

    def __call__(self, prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
        """Their ids, the EOS among them after a sentence; the EOS alone after what begins no sentence."""
        written = classes_of(tokenizer.decode(actions).split())
        ids = word_ids(self.vocabulary)
        allowed = [ids[word] for word in self.vocabulary if (*written, *classes_of([word])) in _BEGINNINGS]
        return [EOS_ID, *allowed] if written in _COUNTS or not allowed else allowed


def _list(prompt: Prompt) -> str:
    return " ".join(prompt.metadata["keywords"])


RUNG = Rung(
    random=-0.0994,
    supervised=0.8796,
    optimum=0.941117,
    hack=Hack(
        "Writes the keywords and nothing else: there is no sentence in it.",
        _list,
        naive=KeywordSentence(gate=False),
        naive_score=0.97,
        robust_score=-0.03,
    ),
)
