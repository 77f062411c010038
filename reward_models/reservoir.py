"""A sample of a stream that has no end, of fixed size and uniform at any time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Reservoir(Generic[T]):
    """A uniform sample of everything that was ever put in (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self.items: list[T] = []
        self.size = size
        self.seen = 0
        self._generator = np.random.default_rng([seed, 1])

    def __len__(self) -> int:
        return len(self.items)

    def extend(self, items: Sequence[T]) -> None:
        """Put items in, each in turn."""
        for item in items:
            self.seen += 1
            if len(self.items) < self.size:
                self.items.append(item)
            elif (place := int(self._generator.integers(self.seen))) < self.size:
                self.items[place] = item

    def state(self) -> dict[str, Any]:
        """The items, and what decides which of them stay."""
        return {"items": list(self.items), "seen": self.seen, "generator": self._generator.bit_generator.state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.items, self.seen = list(state["items"]), state["seen"]
        self._generator.bit_generator.state = state["generator"]

    def draw(self, count: int, generator: np.random.Generator) -> list[T]:
        """Draw items with replacement."""
        return [self.items[index] for index in generator.integers(max(1, len(self.items)), size=count)]
