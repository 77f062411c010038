"""Built-in task: the first four sentences of a story, and the ending that they determine.

    Nora saw a kite in a shop window. She saved money for months. Ben knew about it. On Saturday the window was empty.
    Ending:   →   Nora came too late to buy the kite.

The kind of story and the thing stand in the first sentence, a friend and an effort in the next two, and the last one
says, without naming anything, how it goes on: well, badly, or with the friend's help. So there is one right ending,
and it needs all of the story. (ROCStories, Mostafazadeh et al. 2016, has stories of this shape by people.)

The reward is ROUGE-L with that ending, its optimum 1. A reward that asks for a happy ending instead is given one, the
same for every story (`RUNG`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.own_data import or_own_data, read_data
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tasks.templates import distinct_prompts, sentence
from textgen_env.types import Prompt

TEMPLATE = "{prompt}\nEnding:"
NAMES = {
    "she": ("Ada", "Clara", "Emma", "Nora", "Rosa", "Mia"),
    "he": ("Ben", "Felix", "Hugo", "Leo", "Oscar", "Tom"),
}


@dataclass(frozen=True)
class Plot:
    """One kind of story. Gaps: ``{name}`` with ``{she}`` and ``{her}``, ``{friend}``, ``{thing}``."""

    things: tuple[str, ...]
    beginnings: tuple[str, ...]
    efforts: tuple[str, ...]
    friends: tuple[str, ...]
    outcomes: Mapping[str, tuple[tuple[str, ...], str]]
    """Outcome -> the fourth sentences that tell it, and the ending."""


PLOTS: Mapping[str, Plot] = {
    "baking": Plot(
        things=("cake", "pie", "pizza", "pudding"),
        beginnings=("{name} wanted to bake a {thing} for the party.", "It was up to {name} to bake a {thing} for all."),
        efforts=("{she} mixed everything in a big bowl.", "{she} read the recipe twice."),
        friends=("{friend} had promised to bring the plates.", "{friend} could hardly wait."),
        outcomes={
            "good": (
                ("The kitchen soon smelled wonderful.", "After an hour it was golden brown."),
                "Everyone at the party ate the {thing} of {name}.",
            ),
            "bad": (
                ("Then the phone rang, and smoke filled the kitchen.", "{she} took salt instead of sugar."),
                "{name} threw the {thing} away and bought one.",
            ),
            "help": (
                (
                    "The oven was broken, but there was one next door.",
                    "The oven stayed cold, but not the one of a friend.",
                ),
                "{name} baked the {thing} in the kitchen of {friend}.",
            ),
        },
    ),
    "pet": Plot(
        things=("cat", "dog", "parrot", "rabbit"),
        beginnings=("The {thing} of {name} was gone in the morning.", "{name} woke up and could not see the {thing}."),
        efforts=("{she} looked in every street.", "{she} hung a picture on every tree."),
        friends=("{friend} went to look in the park.", "{friend} called all the neighbours."),
        outcomes={
            "good": (
                ("At noon there was a noise under the bed.", "Then something moved in the wardrobe."),
                "{name} had found the {thing} at home.",
            ),
            "bad": (
                ("It grew dark, and nobody had seen a thing.", "Night fell, and the garden stayed silent."),
                "{name} went to bed without the {thing}.",
            ),
            "help": (
                ("In the evening the doorbell rang.", "At last there was a cheerful shout from the park."),
                "{friend} brought the {thing} back to {name}.",
            ),
        },
    ),
    "race": Plot(
        things=("boat", "bike", "ski", "sack"),
        beginnings=(
            "{name} had trained all year for the {thing} race.",
            "The {thing} race meant everything to {name}.",
        ),
        efforts=("{she} got up early every day.", "{she} started very fast."),
        friends=("{friend} was the best of all the others.", "Only {friend} kept up."),
        outcomes={
            "good": (
                ("Near the end the other one got tired.", "Before the last bend the other one slowed down."),
                "{name} won the {thing} race ahead of {friend}.",
            ),
            "bad": (
                ("Near the end {her} legs hurt too much.", "Before the last bend {she} slowed down."),
                "{friend} won the {thing} race ahead of {name}.",
            ),
            "help": (
                ("{she} fell, and the other one waited.", "{she} got a cramp, and a hand was held out."),
                "{name} and {friend} ended the {thing} race together.",
            ),
        },
    ),
    "wish": Plot(
        things=("watch", "drum", "kite", "camera"),
        beginnings=("{name} saw a {thing} in a shop window.", "{name} had wanted a {thing} for years."),
        efforts=("{she} saved money for months.", "{she} washed cars to earn the money."),
        friends=("{friend} knew about it.", "{friend} often heard of it."),
        outcomes={
            "good": (
                ("On Saturday there was just enough in the jar.", "By summer the jar was full of coins."),
                "{name} bought the {thing} and ran home.",
            ),
            "bad": (
                ("On Saturday the window was empty.", "By summer the shop had sold everything."),
                "{name} came too late to buy the {thing}.",
            ),
            "help": (
                ("On {her} birthday a big box stood at the door.", "Then there was a box with a red ribbon."),
                "{friend} gave the {thing} to {name}.",
            ),
        },
    ),
    "concert": Plot(
        things=("violin", "piano", "flute", "guitar"),
        beginnings=("{name} was to play the {thing} at school.", "There was a concert, and {name} was on the {thing}."),
        efforts=("{she} practised every night.", "{she} could not sleep for a week."),
        friends=("{friend} sat in the first row.", "{friend} came along to listen."),
        outcomes={
            "good": (
                ("{she} thought of nothing but the music.", "Not one note was wrong."),
                "The whole school clapped for {name} and the {thing}.",
            ),
            "bad": (
                ("On stage {she} forgot how it began.", "Already the first notes were wrong."),
                "{name} put the {thing} down and left the stage.",
            ),
            "help": (
                ("{she} was afraid to go on stage alone.", "{she} did not dare to go up by {her}self."),
                "{name} played the {thing} next to {friend}.",
            ),
        },
    ),
    "journey": Plot(
        things=("train", "bus", "ferry", "plane"),
        beginnings=("{name} had to catch the {thing} at eight.", "At eight the {thing} of {name} was to leave."),
        efforts=("The alarm clock did not ring.", "{she} could not find the ticket."),
        friends=("{friend} lived next door.", "{friend} was already up."),
        outcomes={
            "good": (
                ("Luckily the clock in the hall was fast.", "{she} ran as never before."),
                "{name} caught the {thing} with a minute to spare.",
            ),
            "bad": (
                ("The streets were full of people.", "{she} ran, but in the wrong direction."),
                "{name} watched the {thing} leave.",
            ),
            "help": (
                ("Then a car stopped beside {her}.", "There was room in a car that was going there."),
                "{friend} drove {name} to the {thing} in time.",
            ),
        },
    ),
}


@or_own_data(partial(read_data, reward="rouge_l", prompt_field="context", reference_field="ending", template=TEMPLATE))
def story_ending(plots: int = 4, num_prompts: int = 4000, seed: int = 0) -> TextTask:
    """Stories of four sentences, each with its one ending as reference.

    Args:
        plots: how many of the kinds of story there are, at most 6.
        num_prompts: distinct stories.
        seed: seeds the draw.

    The metadata of a prompt are its ``plot`` and its ``outcome`` ("good", "bad" or "help").

    Your own data (``data=``, see `read_data`): columns ``context`` (one text, or a list of sentences) and ``ending``.

    >>> story_ending(num_prompts=20, seed=1).prompts()[0].references
    ('Clara brought the rabbit back to Emma.',)

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 1 <= plots <= len(PLOTS):
        raise ValueError(f"plots must lie between 1 and {len(PLOTS)}, got {plots}")
    prompts = distinct_prompts(partial(_story, tuple(PLOTS)[:plots]), num_prompts, seed, "num_prompts")
    return TextTask(
        "story_ending",
        TextTask.from_pairs(prompts).splits,
        max_new_tokens=20,
        reward="rouge_l",
        oracle=reference_oracle,
    )


def _story(kinds: tuple[str, ...], rng: random.Random) -> Prompt:
    kind = rng.choice(kinds)
    plot = PLOTS[kind]
    outcome = rng.choice(tuple(plot.outcomes))
    she, others = rng.choice(tuple(NAMES)), [name for names in NAMES.values() for name in names]
    name = rng.choice(NAMES[she])
    others.remove(name)
    cast = {"name": name, "she": she, "her": {"she": "her", "he": "him"}[she], "friend": rng.choice(others)}
    cast["thing"] = rng.choice(plot.things)
    turns, ending = plot.outcomes[outcome]
    middle = [rng.choice(plot.efforts), rng.choice(plot.friends)]
    rng.shuffle(middle)
    told = [rng.choice(plot.beginnings), *middle, rng.choice(turns)]
    context = " ".join(sentence(template, cast) for template in told)
    return Prompt(TEMPLATE.format(prompt=context), (sentence(ending, cast),), {"plot": kind, "outcome": outcome})


def happy_ending(prompt: Prompt) -> str:
    """The same for every story."""
    return "Everyone was very happy and had a wonderful day!"


RUNG = Rung(
    random=0.0188,
    supervised=0.743,
    optimum=1.0,
    hack=Hack(
        "The same happy ending for every story.",
        happy_ending,
        naive="sentiment_lexicon",
        naive_score=0.8217,
        robust_score=0.0487,
    ),
)
