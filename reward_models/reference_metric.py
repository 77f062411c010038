"""What the metrics share that compare one text with its references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from reward_models.composite import Composable
from reward_models.inputs import check_references, check_texts


class ReferenceMetric(Composable):
    """Scores each completion against its own references: a subclass names itself and writes ``score``."""

    name: str
    kind: Literal["terminal"] = "terminal"
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def score(self, text: str, targets: Sequence[str]) -> float:
        """The score of one text against one prompt's references, of which there is at least one."""
        raise NotImplementedError

    def __call__(
        self, completions: Sequence[str], references: Sequence[Sequence[str]] | None = None, **_: Any
    ) -> list[float]:
        """Score B completions; B floats within ``bounds``.

        Raises:
            ValueError: a prompt has no references, or the lists differ in length.
            TypeError: a text is not a string, or references are one string instead of a list.
        """
        check_texts(self.name, completions=completions)
        references = check_references(self.name, completions, references)
        return [self.score(text, targets) for text, targets in zip(completions, references, strict=True)]
