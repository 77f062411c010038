"""Local continuity of English text by rule: what each sentence takes up, and what it introduces."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?][\"'”’)\]]*(?=\s)|[。！？]|$)", re.MULTILINE)
_ABBREVIATION = re.compile(r"(?:^|[^\w])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs)\.$")


def _words_in(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRONOUNS = _words_in("he him his himself she her hers herself it its itself they them their theirs themselves")
_CONNECTIVES = _words_in(
    "then but so finally afterwards eventually later however therefore luckily unfortunately suddenly instead also "
    "next after when once now and still yet thankfully"
)
_POINTERS = _words_in("this that these those such another other others")
_FUNCTION_WORDS = (
    _PRONOUNS
    | _CONNECTIVES
    | _POINTERS
    | _words_in(
        "i me my mine we us our ours you your yours a an the or if than as of at by for from in into on onto to with "
        "without about over under up down out off again very too just not no nor is are was were be been being am do "
        "does did doing done have has had having will would can could should may might must who whom whose which what "
        "why how where there here all any both each few more most some only own same one don't didn't isn't wasn't "
        "can't couldn't won't wouldn't"
    )
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, at end marks and line ends; an abbreviation such as "Mr." ends none.

    >>> split_sentences("Mr. Fox ran . He was late!  Why?")
    ['Mr. Fox ran .', 'He was late!', 'Why?']
    """
    sentences: list[str] = []
    goes_on = False
    for piece in filter(None, map(str.strip, _SENTENCE.findall(text))):
        if goes_on:
            sentences[-1] += f" {piece}"
        else:
            sentences.append(piece)
        goes_on = bool(_ABBREVIATION.search(piece))
    return sentences


def lexical_coherence(sentences: Sequence[str], context: Sequence[str] = ()) -> float:
    """Continuity × order × variety, from 0 to 1; 0 if there is no word.

    - Continuity, the mean over the sentences after the first: what a sentence mentions (content words by their Porter
      stem, third-person pronouns) is *given* if it was mentioned before, else new. A sentence with the share g of given
      things scores 2·min(g, 1 − g): taking up nothing, or adding nothing, is worth 0. Continuity of entities between
      sentences is Barzilay & Lapata's (2008) idea, the balance is the given-new contract of Clark & Haviland (1977).
    - Order: the share of sentences in which every third-person pronoun follows something it could stand for, nothing
      known is introduced once more by "a", and which do not open the text with a connective.
    - Variety: the share of distinct word pairs, distinct-2 of Li et al. (2016): against loops.

    Args:
        sentences: the text to judge.
        context: sentences that stand before it, which are not judged.
    """
    discourse = _Discourse()
    for sentence in context:
        discourse.read(_words(sentence))
    continuity: list[float] = []
    breaks: list[bool] = []
    told = [words for words in map(_words, sentences) if words]
    for words in told:
        follows = discourse.has_begun
        given, new, is_broken = discourse.read(words)
        breaks.append(is_broken)
        if follows:
            share = given / (given + new) if given + new else 0.0
            continuity.append(2 * min(share, 1 - share))
    if not told:
        return 0.0
    order = 1 - sum(breaks) / len(breaks)
    return (sum(continuity) / len(continuity) if continuity else 1.0) * order * _variety(told)


class _Discourse:
    """What has been mentioned so far."""

    def __init__(self) -> None:
        self.has_begun = False
        self._known: set[str] = set()

    def read(self, words: Sequence[str]) -> tuple[int, int, bool]:
        """How many given and new things a sentence mentions, and whether it breaks the order; then know them."""
        given, is_broken = 0, False
        introduced: set[str] = set()
        lower = [word.lower().replace("’", "'") for word in words]
        if not self.has_begun and lower:
            is_broken = lower[0] in _CONNECTIVES or lower[0] in _POINTERS
        for before, word in zip(["", *lower], lower, strict=False):
            if word in _PRONOUNS:
                has_antecedent = bool(self._known or introduced)
                given += has_antecedent
                is_broken |= not has_antecedent
            elif word not in _FUNCTION_WORDS:
                stemmed = stem(word)
                if stemmed in self._known:
                    given += 1
                    is_broken |= before in ("a", "an")
                else:
                    introduced.add(stemmed)
        self._known |= introduced
        self.has_begun |= bool(words)
        return given, len(introduced), is_broken


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence)


def _variety(sentences: Sequence[Sequence[str]]) -> float:
    words = [word.lower() for sentence in sentences for word in sentence]
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


@functools.lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """The Porter stem of an English word in lower case, less a possessive "'s".

    >>> stem("ferries"), stem("ferry's")
    ('ferri', 'ferri')
    """
    stemmed: str = _stemmer().stem(word.removesuffix("'s").removesuffix("’s"))
    return stemmed


@functools.cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # it brings all of nltk along, which takes a while to import

    return PorterStemmer()
