"""The judgements of a loop: those that a file has already, and which of all teach, stop the fit, or measure it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from agents.rlhf.settings import RLHFSettings
from reward_models.feedback.items import SCALE
from reward_models.preference import read_preferences
from reward_models.preference.data import Rating, kind_of
from textgen_env import TextMDP
from textgen_env.tasks.dataset import split_of

Records: TypeAlias = Sequence[Mapping[str, Any]]


def read_given(settings: RLHFSettings) -> list[dict[str, Any]]:
    """The judgements in ``settings.judgements``, as records of the loop's kind; none where there is no such file.

    Raises:
        ValueError: they are of another kind, or ratings on another scale than people will be asked on.
        OSError: the file cannot be read.
    """
    path, wanted = settings.judgements, settings.feedback_kind
    if path is None:
        return []
    found = read_preferences(path)
    kind = kind_of(found)
    if kind == "ranking":
        raise ValueError(f"'{path}' holds rankings: a loop learns from comparisons or ratings")
    if kind != wanted:
        raise ValueError(f"'{path}' holds {kind}s: give --feedback-kind {kind}")
    outside = [one.rating for one in found if isinstance(one, Rating) and not SCALE[0] <= one.rating <= SCALE[1]]
    if outside and settings.annotators == "people":
        raise ValueError(
            f"'{path}' has a rating of {outside[0]:g}, but people rate from {SCALE[0]:g} to {SCALE[1]:g}: "
            "bring the file's to that scale, or give --annotators none"
        )
    return [dataclasses.asdict(one) for one in found]


def held_out_prompts(mdp: TextMDP) -> dict[str, str]:
    """The text of every prompt that the policy does not learn on -> its split, "validation" or "test"."""
    splits = mdp.task.splits
    return {prompt.text: name for name in ("validation", "test") for prompt in splits.get(name, ())}


def split_judgements(
    judgements: Records, held_out_share: float, held_out: Mapping[str, str]
) -> dict[str, list[Mapping[str, Any]]]:
    """Judgements to learn from ("train"), to stop by ("validation") and to measure on ("test").

    A prompt stays on its side in all rounds. One that the policy does not learn on is none to learn rewards on either:
    else the evaluation would ask a reward model about texts whose like it knows by heart.

    Args:
        judgements: records of one kind.
        held_out_share: of the policy's training prompts; half stop the fit, half measure it.
        held_out: the side of the policy's other prompts.

    Raises:
        ValueError: a side would have nothing to learn from or to measure by.
    """
    shares = (1 - held_out_share, held_out_share / 2, held_out_share / 2)
    parts: dict[str, list[Mapping[str, Any]]] = {"train": [], "validation": [], "test": []}
    for record in judgements:
        prompt = record["prompt"]
        # Salted: the plain hash of a training prompt lies in the training share, all of them.
        parts[held_out.get(prompt) or split_of(f"judged: {prompt}", shares)].append(record)
    for name, records in parts.items():
        if not _tell_apart(records):
            raise ValueError(
                f"of {len(judgements)} judgements on {len({record['prompt'] for record in judgements})} prompts, none "
                f"that prefers a text falls into the {name} part: give more of them, or another held_out_share"
            )
    return parts


def _tell_apart(records: Records) -> bool:
    """Whether some text is judged better than another."""
    ratings = {record["rating"] for record in records if "rating" in record}
    return len(ratings) > 1 or any("tie" in record and not record["tie"] for record in records)
