"""Every story has one ending, and needs its sentences: shown by telling all of them."""

import itertools

import gymnasium as gym
import pytest

from textgen_env.tasks import story_ending
from textgen_env.tasks.story_ending import NAMES, PLOTS, TEMPLATE

DEFAULT_PLOTS = ("baking", "pet", "race", "wish")
ROLES = ("beginning", "effort", "friend", "turn")


def capitalised(text):
    return text[0].upper() + text[1:]


def stories(plots, names, friends):
    """Every story: its sentences by role, in the order in which they are told, and its ending."""
    for kind, name, friend in itertools.product(plots, names, friends):
        if name == friend:
            continue
        plot, she = PLOTS[kind], "she" if name in NAMES["she"] else "he"
        for thing, (turns, ending) in itertools.product(plot.things, plot.outcomes.values()):
            cast = {"name": name, "friend": friend, "thing": thing, "she": she, "her": "her" if she == "she" else "him"}
            ways = (plot.beginnings, plot.efforts, plot.friends, turns)
            for told in itertools.product(*ways):
                beginning, effort, companion, turn = (capitalised(line.format_map(cast)) for line in told)
                last = capitalised(ending.format_map(cast))
                yield {"beginning": beginning, "effort": effort, "friend": companion, "turn": turn}, last
                yield {"beginning": beginning, "friend": companion, "effort": effort, "turn": turn}, last


def endings(all_stories, hidden=None):
    """What is known of a story -> the endings it can have."""
    found = {}
    for told, ending in all_stories:
        known = " ".join(text for role, text in told.items() if role != hidden)
        found.setdefault(known, set()).add(ending)
    return found


@pytest.fixture(scope="module")
def told():
    return list(stories(PLOTS, ("Ada", "Ben", "Nora"), ("Ada", "Leo", "Rosa")))


def test_a_story_determines_its_ending(told):
    assert all(len(found) == 1 for found in endings(told).values())


@pytest.mark.parametrize("role", ROLES)
def test_it_takes_all_sentences_but_the_effort(role, told):
    """Must fail without the beginning, the friend or the turn."""
    found = endings(told, hidden=role)
    ambiguous = sum(len(each) > 1 for each in found.values()) / len(found)
    assert ambiguous == 0 if role == "effort" else ambiguous > 0.3


def test_prompts_are_such_stories():
    for prompt in story_ending(num_prompts=60, seed=2).prompts():
        cast = [name for names in NAMES.values() for name in names if name in prompt.text.replace(".", "").split()]
        assert len(cast) == 2
        known = endings(stories([prompt.metadata["plot"]], cast, cast))
        assert known[prompt.text.removesuffix(TEMPLATE.format(prompt=""))] == set(prompt.references)
        assert prompt.references[0] in {
            capitalised(PLOTS[prompt.metadata["plot"]].outcomes[prompt.metadata["outcome"]][1]).format(
                name=name, friend=friend, thing=thing
            )
            for name, friend in (cast, cast[::-1])
            for thing in PLOTS[prompt.metadata["plot"]].things
        }


def test_difficulty():
    for plots in (1, 6):
        env = gym.make("textgen_env/StoryEnding-v0", task_kwargs={"plots": plots, "num_prompts": 200})
        mdp = env.unwrapped.mdp
        assert {prompt.metadata["plot"] for prompt in mdp.prompts} == set(tuple(PLOTS)[:plots])
        assert mdp.optimal_return() == 1
    assert {prompt.metadata["plot"] for prompt in story_ending().prompts("test")} == set(DEFAULT_PLOTS)


@pytest.mark.parametrize("plots", [0, 7])
def test_bad_arguments(plots):
    with pytest.raises(ValueError, match=f"plots must lie between 1 and 6, got {plots}"):
        story_ending(plots=plots)
