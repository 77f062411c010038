"""Built-in task: the next reply of a dialogue, where what was agreed determines it.

    Guest: A table on Friday, please.
    Host: For how many, and when?
    Guest: For two people at 7 pm. No, make it Sunday.
    Host:   →   A table for two people on Sunday at 7 pm, then.

Somebody books a table, a room, a taxi or a seat, and the reply confirms it. In half of the dialogues one detail is
changed at the end, and the changed one counts. So there is one right reply, and it needs all turns.

The reward is ROUGE-L with that reply, paid only where every detail in it is right: a booking for the wrong day shares
nine words of ten with the right one, and is worth nothing. Its optimum is 1.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from textgen_env.lookup import load_entry_point
from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.news_templates import NAMES
from textgen_env.tasks.own_data import or_own_data, read_data
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tasks.templates import distinct_prompts
from textgen_env.types import Prompt

DETAILS: Mapping[str, tuple[str, ...]] = {
    "day": tuple(NAMES["day"]),
    "hour": tuple(f"{hour} pm" for hour in (2, 4, 6, 7, 8, 9)),
    "people": tuple(f"{number} people" for number in ("two", "three", "five", "six", "ten")),
    "nights": tuple(f"{number} nights" for number in ("two", "three", "four", "five")),
    "city": tuple(NAMES["city"][:8]),
}
"""What can be agreed on. No detail of one kind can be taken for one of another."""
CORRECTIONS = ("No, make it {new}.", "Sorry, I meant {new}.")


@dataclass(frozen=True)
class Scene:
    """One kind of booking. Every reply holds all details that its dialogue asks for."""

    speakers: tuple[str, str]
    openings: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    reply: str
    details: tuple[str, ...]


SCENES: Mapping[str, Scene] = {
    "table": Scene(
        ("Guest", "Host"),
        ("A table on {day}, please.", "Have you got a table on {day}?"),
        ("For how many, and when?", "With pleasure. Who is coming, and when?"),
        ("For {people} at {hour}.", "We are {people}, and we come at {hour}."),
        "A table for {people} on {day} at {hour}, then.",
        ("day", "people", "hour"),
    ),
    "taxi": Scene(
        ("Caller", "Driver"),
        ("Can you drive us to {city}?", "We need a taxi to {city}."),
        ("Sure. When, and how many are you?", "At what time, and for how many?"),
        ("At {hour}, for {people}.", "There are {people}, ready at {hour}."),
        "I will drive {people} to {city} at {hour}.",
        ("city", "hour", "people"),
    ),
    "room": Scene(
        ("Traveller", "Hotel"),
        ("I am looking for a room in {city}.", "Is there a room free in {city}?"),
        ("For how long, and from which day?", "Yes. When do you arrive, and for how long?"),
        ("For {nights} from {day}.", "I arrive on {day} and stay {nights}."),
        "Your room in {city} is booked for {nights} from {day}.",
        ("city", "nights", "day"),
    ),
    "seat": Scene(
        ("Passenger", "Clerk"),
        ("One seat to {city}, please.", "I have to go to {city}."),
        ("Which day, and which train?", "When would you like to leave?"),
        ("On {day} at {hour}.", "The train at {hour} on {day}."),
        "One seat to {city} on {day} at {hour}. Have a good trip!",
        ("city", "day", "hour"),
    ),
}


@or_own_data(
    partial(read_data, reward="rouge_l", prompt_field="context", reference_field="reply", template="{prompt}\nReply:")
)
def dialogue(scenes: int = 2, num_prompts: int = 4000, seed: int = 0, corrections: float = 0.5) -> TextTask:
    """Dialogues of three turns, each with the reply as reference.

    Args:
        scenes: how many of the kinds of booking there are, at most 4.
        num_prompts: distinct dialogues.
        seed: seeds the draw.
        corrections: the share of dialogues in which a detail is changed.

    The metadata of a prompt are its ``scene``, its ``details`` and the ``first_details``, before any change.

    Your own data (``data=``, see `read_data`): columns ``context`` (one text, or a list of turns) and ``reply``, under
    ROUGE-L alone.

    >>> dialogue(num_prompts=20, seed=1).prompts()[0].references
    ('A table for five people on Friday at 6 pm, then.',)

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 1 <= scenes <= len(SCENES):
        raise ValueError(f"scenes must lie between 1 and {len(SCENES)}, got {scenes}")
    if not 0 <= corrections <= 1:
        raise ValueError(f"corrections is a share from 0 to 1, got {corrections}")
    draw = partial(_dialogue, tuple(SCENES)[:scenes], corrections)
    prompts = distinct_prompts(draw, num_prompts, seed, "num_prompts")
    return TextTask(
        "dialogue",
        TextTask.from_pairs(prompts).splits,
        max_new_tokens=24,
        reward=load_entry_point("reward_models:Gate")(details_right, "rouge_l"),
        oracle=reference_oracle,
    )


def _dialogue(scenes: Sequence[str], corrections: float, rng: random.Random) -> Prompt:
    kind = rng.choice(scenes)
    scene = SCENES[kind]
    first = {detail: rng.choice(DETAILS[detail]) for detail in scene.details}
    agreed = dict(first)
    said = [rng.choice(ways).format_map(first) for ways in (scene.openings, scene.questions, scene.answers)]
    if rng.random() < corrections:
        changed = rng.choice(scene.details)
        agreed[changed] = rng.choice([value for value in DETAILS[changed] if value != first[changed]])
        said[-1] += " " + rng.choice(CORRECTIONS).format(new=agreed[changed])
    customer, other = scene.speakers
    turns = [f"{speaker}: {text}" for speaker, text in zip((customer, other, customer), said, strict=True)]
    metadata = {"scene": kind, "details": tuple(agreed.values()), "first_details": tuple(first.values())}
    return Prompt("\n".join([*turns, f"{other}:"]), (scene.reply.format_map(agreed),), metadata)


def details_right(completions: list[str], details: list[tuple[str, ...]]) -> list[float]:
    """1 where a reply states every detail that was agreed on, and no other of those there are; else 0."""
    known = {value for values in DETAILS.values() for value in values}
    return [
        float({value for value in known if f" {value}" in f" {text}"} == set(agreed))
        for text, agreed in zip(completions, details, strict=True)
    ]


def as_first_asked(prompt: Prompt) -> str:
    """The reply to what was said first: it sounds right, and misses every change."""
    scene = SCENES[prompt.metadata["scene"]]
    return scene.reply.format_map(dict(zip(scene.details, prompt.metadata["first_details"], strict=True)))


RUNG = Rung(
    random=0.0,
    supervised=0.658,
    optimum=1.0,
    hack=Hack(
        "The reply to what was said first, without the change.",
        as_first_asked,
        naive="rouge_l",
        naive_score=0.9454,
        robust_score=0.4289,
    ),
)
