"""How far a stated probability can be believed: reliability diagrams and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ReliabilityBin:
    """The predictions whose probability lies in (low, high] (the first bin holds its low end too)."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean stated probability; None in an empty bin."""
    frequency: float | None
    """Share that came true; None in an empty bin."""


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram and its summary."""

    ece: float
    bins: tuple[ReliabilityBin, ...]


def calibration(
    probabilities_N: npt.ArrayLike, outcomes_N: npt.ArrayLike, *, bins: int = 10, low: float = 0.0
) -> Calibration:
    """Expected calibration error over equally wide bins: ``Σ_b (n_b / N) |frequency_b − confidence_b|``.

    Guo, Pleiss, Sun & Weinberger (2017), equation 3.

    Args:
        probabilities_N: stated probabilities of N events, each in [low, 1].
        outcomes_N: what came true, 0 or 1.
        bins: how many.
        low: where the first bin begins: 0.5 for the confidence in the likelier of two outcomes.

    Raises:
        ValueError: no events, lists of different lengths, a probability outside [low, 1] or less than one bin.
    """
    stated = np.asarray(probabilities_N, dtype=np.float64)
    came_true = np.asarray(outcomes_N, dtype=np.float64)
    if stated.ndim != 1 or stated.shape != came_true.shape or not stated.size or bins < 1:
        raise ValueError(
            f"calibration wants one outcome for each of N ≥ 1 probabilities and at least one bin, "
            f"got shapes {stated.shape} and {came_true.shape} and {bins} bins"
        )
    if not ((stated >= low) & (stated <= 1)).all():
        raise ValueError(f"probabilities must lie in [{low}, 1], got {stated.min()} to {stated.max()}")
    edges = np.linspace(low, 1.0, bins + 1)
    bin_of_N = np.clip(np.searchsorted(edges, stated, side="left") - 1, 0, bins - 1)
    found = []
    for index in range(bins):
        inside = bin_of_N == index
        some = bool(inside.any())
        found.append(
            ReliabilityBin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int(inside.sum()),
                confidence=float(stated[inside].mean()) if some else None,
                frequency=float(came_true[inside].mean()) if some else None,
            )
        )
    gaps = [one.count * abs(one.frequency - one.confidence) for one in found if one.count]  # type: ignore[operator]
    return Calibration(float(sum(gaps) / stated.size), tuple(found))
