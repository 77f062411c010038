"""Rewards that compare a text with its references by counting what they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rouge_score import rouge_scorer

from reward_models.composite import Composable
from textgen_env.lookup import did_you_mean

_VARIANTS = {"1": "rouge1", "2": "rouge2", "l": "rougeL", "lsum": "rougeLsum"}
_MEASURES = {"f1": "fmeasure", "precision": "precision", "recall": "recall"}
_AGGREGATES = ("max", "mean")


class Rouge(Composable):
    """ROUGE (Lin, 2004) of a completion against its prompt's references, computed by ``rouge-score``.

    Args:
        variant: ``"1"`` or ``"2"`` (shared words, shared word pairs), ``"L"`` (longest common subsequence) or
            ``"Lsum"`` (the same, line by line: one sentence a line). ``1``, ``"rouge1"`` and ``"rouge_l"``
            mean the same.
        measure: ``"f1"``, ``"precision"`` or ``"recall"``.
        use_stemmer: compare Porter stems rather than words.
        aggregate: over several references, ``"max"`` (of the chosen measure) or ``"mean"``.

    Raises:
        ValueError: an unknown variant, measure or aggregate.

    >>> Rouge("1")(completions=["the cat sat"], references=[["the cat slept", "a dog"]])
    [0.6666666666666666]
    """

    kind: Literal["terminal"] = "terminal"
    bounds = (0.0, 1.0)

    def __init__(
        self,
        variant: str | int = "L",
        measure: str = "f1",
        use_stemmer: bool = False,
        aggregate: str = "max",
    ) -> None:
        short = str(variant).lower().removeprefix("rouge").lstrip("_-")
        if short not in _VARIANTS:
            raise ValueError(f"unknown ROUGE variant {variant!r}; {did_you_mean(short, _VARIANTS)}")
        if measure not in _MEASURES:
            raise ValueError(f"unknown ROUGE measure {measure!r}; {did_you_mean(str(measure), _MEASURES)}")
        if aggregate not in _AGGREGATES:
            raise ValueError(f"unknown ROUGE aggregate {aggregate!r}; {did_you_mean(str(aggregate), _AGGREGATES)}")
        self.name = f"rouge_{short}" if measure == "f1" else f"rouge_{short}_{measure}"
        self._type = _VARIANTS[short]
        self._measure = _MEASURES[measure]
        self._aggregate = aggregate
        # split_summaries stays off: it needs nltk's punkt data, which no package brings along.
        self._scorer = rouge_scorer.RougeScorer([self._type], use_stemmer=use_stemmer)

    def __call__(
        self,
        completions: Sequence[str],
        references: Sequence[Sequence[str]],
        prompts: Sequence[str] | None = None,
        **_: Any,
    ) -> list[float]:
        """Score B completions against their references; B floats in [0, 1], an empty text 0.

        Raises:
            ValueError: a prompt has no references, or the lists differ in length.
            TypeError: a prompt's references are one string instead of a list of strings.
        """
        scores = []
        for index, (completion, targets) in enumerate(zip(completions, references, strict=True)):
            if isinstance(targets, str):
                raise TypeError(f"{self.name} wants a list of references a prompt, got the string {targets!r}")
            if not targets:
                prompt = f"prompt {prompts[index]!r}" if prompts else f"prompt number {index}"
                raise ValueError(f"{self.name} needs a reference to compare with, and {prompt} has none")
            scores.append(self._score(completion, targets))
        return scores

    def _score(self, completion: str, targets: Sequence[str]) -> float:
        values = [
            float(getattr(self._scorer.score(target, completion)[self._type], self._measure)) for target in targets
        ]
        return max(values) if self._aggregate == "max" else sum(values) / len(values)
