"""Does a text state the facts of a knowledge graph, and does it state them right?

A fact is a triple (subject, relation, object), as the prompts of a task carry them in their metadata column ``facts``.
What a text *claims* about a graph is read by matching words (``claims``), or by an extractor of your own; precision,
recall and contradiction are then counted over triples.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from reward_models.composite import Composable
from reward_models.discourse import split_sentences, stem
from reward_models.inputs import check_texts
from textgen_env.lookup import did_you_mean

Triple: TypeAlias = tuple[str, str, str]
"""Subject, relation, object."""

Extractor: TypeAlias = Callable[[str, Sequence[Triple]], Collection[Triple]]
"""What a text claims: called with the text and the prompt's facts. A claim that is one of the facts is true."""

Aliases: TypeAlias = Mapping[str, Sequence[str]]
"""Other words for a subject, relation or object."""

RELATION_WORDS: Aliases = {
    "place": ("in", "at", "near", "to", "from", "of"),
    "time": ("on", "in", "at", "since", "until"),
    "date": ("on", "in", "since", "until"),
}
"""How texts say relations that are labels rather than words."""

_MEASURES = ("f1", "precision", "recall", "contradiction")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_ARTICLES = frozenset(("a", "an", "the"))
_SPELT_OUT = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_SPELT_OUT.split())}


class Factual(Composable):
    """Facts of a text against the triples that its task supplies in the metadata column ``facts``.

    Args:
        measure: over what the text claims about the graph: ``"precision"`` (the share of the claims that are facts; 0
            for a text that claims nothing), ``"recall"`` (the share of the facts that are claimed), ``"f1"`` of both,
            or ``"contradiction"`` (the share of the facts that a claim contradicts: same subject and relation, an
            object that is none of the graph's; wants a negative weight).
        aliases: other words for subjects, relations and objects, e.g. ``{"Norfell": ["the capital"]}``. They add to
            ``RELATION_WORDS``.
        extractor: reads the claims out of a text instead of ``claims``: called with the text and the prompt's facts, it
            returns triples (an information extraction model's, say).

    Raises:
        ValueError: an unknown measure.

    >>> facts = [("Fire", "ruins", "5 shops"), ("Fire", "place", "Brent")]
    >>> Factual("recall")(completions=["Fire ruins five shops in Arlow"], facts=[facts])
    [0.5]
    """

    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(
        self, measure: str = "f1", *, aliases: Aliases | None = None, extractor: Extractor | None = None
    ) -> None:
        if measure not in _MEASURES:
            raise ValueError(f"unknown measure {measure!r}; {did_you_mean(str(measure), _MEASURES)}")
        if aliases is not None and any(isinstance(words, str) for words in aliases.values()):
            raise TypeError("aliases map a word to a list of others, not to one string")
        self.name = "factual" if measure == "f1" else f"factual_{measure}"
        self._measure = measure
        self._extract = extractor or functools.partial(claims, aliases={**RELATION_WORDS, **(aliases or {})})

    def __call__(
        self, completions: Sequence[str], facts: Sequence[Sequence[Sequence[str]] | None], **_: Any
    ) -> list[float | None]:
        """Score B completions; B floats in [0, 1], or None where a prompt has no facts.

        Raises:
            TypeError: a text is not a string, or a fact is not three strings.
            ValueError: a fact has a part without words.
        """
        check_texts(self.name, completions=completions)
        scores: list[float | None] = []
        for text, graph in zip(completions, map(_check_facts, facts), strict=True):
            scores.append(measure_claims(self._extract(text, graph), graph)[self._measure] if graph else None)
        return scores


def measure_claims(claimed: Collection[Triple], facts: Collection[Triple]) -> dict[str, float]:
    """Precision, recall, f1 and contradiction of claims against facts, each from 0 to 1.

    Args:
        claimed: the triples that a text states; equal ones count once.
        facts: at least one triple.
    """
    stated = {_plain(triple) for triple in claimed}
    true = {_plain(triple) for triple in facts}
    right = stated & true
    wrong = {triple[:2] for triple in stated - true}
    contradicted = sum(fact[:2] in wrong for fact in true)
    precision = len(right) / len(stated) if stated else 0.0
    recall = len(right) / len(true)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "contradiction": contradicted / len(true),
    }


def claims(text: str, facts: Sequence[Triple], aliases: Aliases = RELATION_WORDS) -> list[Triple]:
    """What a text says about the subjects and relations of a graph, read by matching words.

    A fact is stated where a sentence mentions its subject, then its relation, then (two words later at most) its
    object. In the object's place there may be a *rival*: a number where the object has other ones, a name (a
    capitalised word) where it has other ones, or the object of another fact with the same relation. That is a claim
    too: (subject, relation, rival). Words are compared by their Porter stems, without case, articles and the commas of
    numbers; small numbers may be spelt out.

    Synonyms want aliases. Pronouns, negation and a passive voice are beyond it: then pass an extractor.

    >>> claims("Fire ruins 7 shops in Brent", [("Fire", "ruins", "5 shops"), ("Fire", "place", "Brent")])
    [('Fire', 'ruins', '7'), ('Fire', 'place', 'Brent')]
    """
    found: dict[Triple, None] = {}
    sentences = [_tokens(sentence) for sentence in split_sentences(text)]
    for fact in facts:
        subject, relation, target = ([_phrase(words, fact) for words in _spellings(part, aliases)] for part in fact)
        rivals = _Rivals(fact, facts)
        for tokens in sentences:
            words = [token.plain for token in tokens]
            subject_ends = [stop for _, stop in _mentions(words, subject)]
            if not subject_ends:
                continue
            targets = {start for start, _ in _mentions(words, target)}
            reach = _SLACK + max(map(len, target))
            for _, stop in _mentions(words, relation, start=min(subject_ends)):
                for place in range(stop, min(stop + reach, len(tokens))):
                    if place in targets:
                        found[fact] = None
                        break
                    rival = rivals.at(tokens, place)
                    if rival is not None:
                        found[(fact[0], fact[1], rival)] = None
                        break
    return list(found)


_SLACK = 2
"""Words that may stand between a relation and its object."""


class _Token(NamedTuple):
    """A word of a text, and how it is compared."""

    text: str
    plain: str


class _Rivals:
    """What would stand in the place of a fact's object if the fact were wrong."""

    def __init__(self, fact: Triple, facts: Sequence[Triple]) -> None:
        own = _tokens(fact[2])
        self._own = {token.plain for token in own}
        self._has_numbers = any(token.text[0].isdigit() for token in own)
        self._has_names = any(token.text[0].isupper() for token in own)
        self._others = [
            (other[2], [token.plain for token in _tokens(other[2])])
            for other in facts
            if other[1] == fact[1] and other[2] != fact[2]
        ]

    def at(self, tokens: Sequence[_Token], place: int) -> str | None:
        """The rival that begins at a place, as it is written."""
        for text, words in self._others:
            if [token.plain for token in tokens[place : place + len(words)]] == words:
                return text
        token = tokens[place]
        if token.plain in self._own:
            return None
        is_number = self._has_numbers and token.plain[0].isdigit()
        is_name = self._has_names and token.text[0].isupper()
        return token.text if is_number or is_name else None


def _spellings(part: str, aliases: Aliases) -> list[str]:
    return [part, *aliases.get(part, ())]


def _phrase(words: str, fact: Triple) -> list[str]:
    phrase = [token.plain for token in _tokens(words)]
    if not phrase:
        raise ValueError(f"{words!r} has no word to look for in a text: mend the fact {fact} or its aliases")
    return phrase


def _mentions(words: Sequence[str], phrases: Sequence[Sequence[str]], start: int = 0) -> list[tuple[int, int]]:
    """Where a phrase stands among the words: (first, one past the last) of each mention."""
    return [
        (place, place + len(phrase))
        for phrase in phrases
        for place in range(start, len(words) - len(phrase) + 1)
        if words[place] == phrase[0] and list(words[place : place + len(phrase)]) == list(phrase)
    ]


def _tokens(text: str) -> list[_Token]:
    return [_Token(word, _plain_word(word)) for word in _WORD.findall(text) if word.lower() not in _ARTICLES]


def _plain_word(word: str) -> str:
    lower = word.lower()
    return _THOUSANDS.sub("", word) if word[0].isdigit() else _NUMBERS.get(lower) or stem(lower)


def _plain(triple: Triple) -> Triple:
    subject, relation, target = (" ".join(token.plain for token in _tokens(part)) for part in triple)
    return subject, relation, target


def _check_facts(facts: Any) -> list[Triple]:
    """A prompt's facts as triples; none if it has none."""
    if facts is None:
        return []
    if isinstance(facts, (str, Mapping)) or not isinstance(facts, Collection):
        raise TypeError(f"facts are a list of triples (subject, relation, object), got {facts!r:.80}")
    triples = []
    for fact in facts:
        is_triple = isinstance(fact, (list, tuple)) and len(fact) == 3 and all(isinstance(part, str) for part in fact)
        if not is_triple:
            raise TypeError(f"a fact is three strings (subject, relation, object), got {fact!r:.80}")
        triples.append((fact[0], fact[1], fact[2]))
    return triples
