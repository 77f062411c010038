"""What a word is, in any script, and whether a text contains one: shared by all rules about words."""

from __future__ import annotations

import functools
import unicodedata

import regex

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts written without spaces between words."""
_JOINED = rf"[\w--[{_SPACELESS}]]"
"""Letters, digits, marks and underscores of the other scripts."""
_WORD = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|{_JOINED}+(?:['’]{_JOINED}+)*", regex.V1)


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and marks, with apostrophes inside.

    Scripts without spaces (Chinese, Japanese kana, Thai, Lao, Khmer, Burmese) have no visible words: there, every
    character is one.

    >>> words("Don't stop, 日本語!")
    ["Don't", 'stop', '日', '本', '語']
    """
    return _WORD.findall(text)


def fold(text: str) -> str:
    """A text without case (``str.casefold``), accents composed: what two spellings of the same word share.

    >>> fold("STRASSE") == fold("straße")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def phrase_source(phrase: str) -> str:
    """A regular expression (for ``regex.V1``) that finds a word or phrase in folded text.

    A phrase stands alone: "cat" is not in "concatenate", but it is in "cat's". Spaces match any white space. An end of
    the phrase that is no letter ("C++", an emoji) or belongs to a script without spaces needs no gap beside it.

    Raises:
        ValueError: the phrase is blank.
    """
    parts = fold(phrase).split()
    if not parts:
        raise ValueError(f"an empty word would be in every text: {phrase!r}")
    body = r"\s+".join(regex.escape(part, special_only=True) for part in parts)
    joined = regex.compile(_JOINED, regex.V1)
    before = rf"(?<!{_JOINED})" if joined.match(parts[0][0]) else ""
    after = rf"(?!{_JOINED})" if joined.match(parts[-1][-1]) else ""
    return f"{before}{body}{after}"


@functools.lru_cache(maxsize=10_000)
def phrase_pattern(phrase: str) -> regex.Pattern[str]:
    """`phrase_source`, compiled."""
    return regex.compile(phrase_source(phrase), regex.V1)


def contains(text: str, phrase: str) -> bool:
    """Whether a word or phrase stands in a text, whatever its case.

    >>> contains("The CAT sat.", "cat"), contains("concatenate", "cat"), contains("猫が好き", "猫")
    (True, False, True)

    Raises:
        ValueError: the phrase is blank.
    """
    return phrase_pattern(phrase).search(fold(text)) is not None
