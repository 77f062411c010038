"""Local continuity of English text by rule: what each sentence takes up, and what it introduces."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

from nltk.stem.porter import PorterStemmer

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?][\"'”’)\]]*(?=\s)|[。！？]|$)", re.MULTILINE)
_ABBREVIATION = re.compile(r"(?:^|[^\w])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|vs)\.$")


def _words_in(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PERSONS = _words_in("he him his she her hers himself herself they them their theirs themselves")
_PRONOUNS = _PERSONS | _words_in("it its itself")
_SPEAKERS = _words_in("i me my mine we us our ours")
_CONNECTIVES = _words_in(
    "then but so finally afterwards eventually later however therefore luckily unfortunately suddenly instead also "
    "next after when once now and still yet thankfully"
)
_POINTERS = _words_in("this that these those such another other others")
_FUNCTION_WORDS = (
    _PRONOUNS
    | _SPEAKERS
    | _CONNECTIVES
    | _POINTERS
    | _words_in(
        "a an the or if than as of at by for from in into on onto to with without about over under up down out off "
        "again very too just not no nor is are was were be been being am do does did doing done have has had having "
        "will would can could should may might must you your yours who whom whose which what why how where there here "
        "all any both each few more most some only own same one don't didn't isn't wasn't can't couldn't won't wouldn't"
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
    - Order: the share of sentences in which every pronoun has an antecedent (for a person a name or a speaker, else
      anything), nothing known is introduced once more by "a", and which do not open the text with a connective.
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
        self._has_person = False

    def read(self, words: Sequence[str]) -> tuple[int, int, bool]:
        """How many given and new things a sentence mentions, and whether it breaks the order; then know them."""
        has_capitals = any(word[0].isupper() for word in words)  # else a name cannot be told from other words
        given, is_broken = 0, False
        introduced: set[str] = set()
        lower = [word.lower().replace("’", "'") for word in words]
        if not self.has_begun and lower:
            is_broken = lower[0] in _CONNECTIVES or lower[0] in _POINTERS
        for index, (word, plain) in enumerate(zip(words, lower, strict=True)):
            if plain in _PRONOUNS:
                is_resolved = self._has_person if plain in _PERSONS else bool(self._known or introduced)
                given += is_resolved
                is_broken |= not is_resolved
            elif plain in _SPEAKERS:
                self._has_person = True
            elif plain not in _FUNCTION_WORDS:
                self._has_person |= word[0].isupper() or not has_capitals
                stem = _stem(plain)
                if stem in self._known:
                    given += 1
                    is_broken |= index > 0 and lower[index - 1] in ("a", "an")
                else:
                    introduced.add(stem)
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
def _stem(word: str) -> str:
    stem: str = _stemmer.stem(word.removesuffix("'s"))
    return stem


_stemmer = PorterStemmer()
