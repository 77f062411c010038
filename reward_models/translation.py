"""The metrics of machine translation: BLEU, chrF, TER (by ``sacrebleu``) and METEOR (by ``nltk``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from reward_models.composite import Composable
from reward_models.inputs import check_references, check_texts
from reward_models.reference_metric import ReferenceMetric
from textgen_env.lookup import did_you_mean

SMOOTHINGS = ("exp", "floor", "add-k", "none")
"""sacreBLEU's ways with n-grams that never match."""


class Bleu(ReferenceMetric):
    """BLEU (Papineni et al. 2002) of one text: sacreBLEU's sentence score by 100, so in [0, 1].

    Orders that a text is too short for are left out (sacreBLEU's ``effective_order``), and an order without a match
    counts as ``smoothing`` says, after Chen & Cherry (2014): ``"exp"``, the k-th such order by ``1/(2^k · n-grams)``
    (their method 3); ``"floor"``, by ``smooth_value`` matches (method 1, default 0.1); ``"add-k"``, ``smooth_value``
    matches and n-grams more in every order above 1 (method 2, default 1); ``"none"``, the score is 0. Several
    references are one, as the paper has it: an n-gram may match in any, and the length nearest to the text's counts.
    For a figure about a whole test set see ``corpus_scores``: it is not the mean of these.

    Args:
        smoothing: ``"exp"``, ``"floor"``, ``"add-k"`` or ``"none"``.
        smooth_value: for ``"floor"`` and ``"add-k"``.
        max_order: the longest n-grams.
        lowercase: compare without case.
        tokenize: sacreBLEU's tokenizer: ``"13a"``, ``"intl"``, ``"zh"`` (Chinese), ``"char"``, ``"none"``, …

    Raises:
        ValueError: an unknown smoothing or tokenizer, or ``max_order < 1``.

    >>> Bleu()(completions=["the cat sat on the mat"], references=[["the cat sat on the mat", "a cat"]])
    [1.0]
    """

    name = "bleu"

    def __init__(
        self,
        smoothing: str = "exp",
        smooth_value: float | None = None,
        max_order: int = 4,
        lowercase: bool = False,
        tokenize: str = "13a",
    ) -> None:
        from sacrebleu.metrics import BLEU

        if smoothing not in SMOOTHINGS:
            raise ValueError(f"unknown BLEU smoothing {smoothing!r}; {did_you_mean(str(smoothing), SMOOTHINGS)}")
        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"unknown BLEU tokenizer {tokenize!r}; {did_you_mean(str(tokenize), BLEU.TOKENIZERS)}")
        if max_order < 1:
            raise ValueError(f"BLEU counts n-grams up to max_order >= 1, got {max_order}")
        self._metric = BLEU(
            lowercase=lowercase,
            tokenize=tokenize,
            smooth_method=smoothing,
            smooth_value=smooth_value,
            max_ngram_order=max_order,
            effective_order=True,
        )

    def score(self, text: str, targets: Sequence[str]) -> float:
        """sacreBLEU's sentence score by 100."""
        return _sentence_score(self._metric, text, targets)


class Chrf(ReferenceMetric):
    """chrF (Popović 2015): the F-score of character n-grams; sacreBLEU's sentence score by 100, so in [0, 1].

    It needs no words, so it suits every script. Over several references the best counts.

    Args:
        char_order: the longest character n-grams.
        word_order: the longest word n-grams counted too; 2 makes it chrF++ (Popović 2017).
        beta: how many times recall counts as much as precision.
        lowercase: compare without case.

    Raises:
        ValueError: an order is out of range, or ``beta`` is not positive.

    >>> Chrf()(completions=["the cat"], references=[["the cat"]])
    [1.0]
    """

    def __init__(self, char_order: int = 6, word_order: int = 0, beta: int = 2, lowercase: bool = False) -> None:
        from sacrebleu.metrics import CHRF

        if char_order < 1 or word_order < 0 or beta <= 0:
            raise ValueError(
                f"chrF wants char_order >= 1, word_order >= 0 and beta > 0, got {char_order}, {word_order}, {beta}"
            )
        self.name = "chrf" + "+" * word_order
        self._metric = CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)

    def score(self, text: str, targets: Sequence[str]) -> float:
        """sacreBLEU's sentence score by 100."""
        return _sentence_score(self._metric, text, targets)


class Ter(Composable):
    """*Minus* the translation edit rate (Snover et al. 2006), as a reward should: 0 is perfect, -1 all wrong.

    TER is the number of edits (words inserted, deleted, replaced, and phrases moved) that turn the text into the
    nearest reference, by the references' mean length: minus sacreBLEU's sentence score by 100. A long text can
    need more edits than the reference has words, so there is no lowest value. The search for moved phrases is slow
    (seconds for two texts of some hundred words).

    Args:
        case_sensitive: compare with case.
        normalized: split punctuation and undo XML escapes first.
        max_words: above this many words on both sides, an error rather than minutes of search.

    >>> Ter()(completions=["the cat sat"], references=[["the cat sat down"]])
    [-0.25]
    """

    name = "ter"
    kind: Literal["terminal"] = "terminal"
    bounds = None

    def __init__(self, case_sensitive: bool = False, normalized: bool = False, max_words: int = 500) -> None:
        from sacrebleu.metrics import TER

        self.max_words = max_words
        self._metric = TER(case_sensitive=case_sensitive, normalized=normalized)

    def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]] | None = None, **_: Any
    ) -> list[float]:
        """Score B completions; B floats, none above 0.

        Raises:
            ValueError: a prompt has no references, the lists differ in length, or two texts have more words than
                ``max_words``.
            TypeError: a text is not a string, or references are one string instead of a list.
        """
        check_texts(self.name, completions=completions)
        references = check_references(self.name, completions, references)
        check_ter_lengths(completions, references, self.max_words, lambda text: self._metric.tokenizer(text).split())
        rates = [
            float(self._metric.sentence_score(text, list(targets)).score) / 100
            for text, targets in zip(completions, references, strict=True)
        ]
        return [-rate if rate else 0.0 for rate in rates]  # no -0.0


class Meteor(ReferenceMetric):
    """METEOR (Banerjee & Lavie 2005): words aligned by form, stem and synonym; nltk's figure, in [0, 1].

    Over several references the best counts.

    Args:
        synonyms: align synonyms too, which needs the WordNet data; without, nltk's figure where WordNet is empty.
        tokenize: splits a text into words; default: nltk's ``wordpunct_tokenize``.
        alpha: weight of precision in the harmonic mean.
        beta: exponent of the penalty for scattered matches.
        gamma: weight of that penalty.

    Raises:
        LookupError: the WordNet data is not installed; the message says how to get it.

    >>> Meteor(synonyms=False)(completions=["the cats sat"], references=[["the cat sat"]])
    [0.9814814814814815]
    """

    name = "meteor"

    def __init__(
        self,
        synonyms: bool = True,
        tokenize: Callable[[str], list[str]] | None = None,
        alpha: float = 0.9,
        beta: float = 3.0,
        gamma: float = 0.5,
    ) -> None:
        if synonyms:
            _want_wordnet()
        self._synonyms = synonyms
        self._tokenize = tokenize  # nltk's own is not kept: it does not survive pickling
        self._weights = {"alpha": alpha, "beta": beta, "gamma": gamma}

    def score(self, text: str, targets: Sequence[str]) -> float:
        """nltk's figure; 0 where no word is shared."""
        from nltk.corpus import wordnet
        from nltk.tokenize import wordpunct_tokenize
        from nltk.translate.meteor_score import meteor_score

        tokenize = self._tokenize or wordpunct_tokenize
        known = wordnet if self._synonyms else _EmptyWordNet()
        return float(meteor_score([*map(tokenize, targets)], tokenize(text), wordnet=known, **self._weights))


class _EmptyWordNet:
    def synsets(self, word: str) -> list[Any]:
        return []


def check_ter_lengths(
    completions: Sequence[str],
    references: Sequence[Sequence[str]],
    max_words: int = 500,
    split: Callable[[str], list[str]] = str.split,
) -> None:
    """Refuse pairs on which TER's search for moved phrases would take minutes; ``split`` is what TER calls words.

    Raises:
        ValueError: a completion and a reference of its both have more than ``max_words`` words.
    """
    for index, (text, targets) in enumerate(zip(completions, references, strict=True)):
        words, target_words = len(split(text)), max(len(split(target)) for target in targets)
        if min(words, target_words) > max_words:
            raise ValueError(
                f"ter would take minutes for completion number {index}, of {words} words against {target_words}: "
                f"shorten the texts, raise max_words ({max_words}), or use EditSimilarity(unit='words')"
            )


def _sentence_score(metric: Any, text: str, targets: Sequence[str]) -> float:
    """sacreBLEU's sentence score by 100; its rounding may pass 1 by 1e-16, its bounds may not."""
    return min(float(metric.sentence_score(text, list(targets)).score) / 100, 1.0)


def _want_wordnet() -> None:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise LookupError(
            "METEOR finds synonyms in WordNet, which comes with no package: python -m nltk.downloader wordnet "
            "omw-1.4 (or set NLTK_DATA to a folder that has corpora/wordnet); Meteor(synonyms=False) does without"
        ) from error
