"""A reader who heeds the correction replies right; one who does not is wrong on half of the dialogues."""

import re

import gymnasium as gym
import pytest

from textgen_env import TextMDP
from textgen_env.tasks import dialogue
from textgen_env.tasks.dialogue import CORRECTIONS, DETAILS, SCENES, as_first_asked, details_right

CORRECTION = re.compile("|".join(re.escape(each).replace(r"\{new\}", "(.+)") for each in CORRECTIONS))
KIND_OF = {value: kind for kind, values in DETAILS.items() for value in values}


@pytest.fixture(scope="module")
def test_split():
    return TextMDP(dialogue(), split="test")


def reply(prompt, heeds_corrections=True):
    """What the turns say, put into the reply of the scene whose speakers they are."""
    turns = prompt.text.split("\n")
    customer = turns[0].split(":")[0]
    scene = next(scene for scene in SCENES.values() if scene.speakers[0] == customer)
    said = " ".join(turns)
    corrected = CORRECTION.search(turns[2])
    before = said[: said.index(corrected[0])] if corrected else said
    known = {KIND_OF[value]: value for value in KIND_OF if re.search(rf"\b{value}\b", before)}
    if corrected and heeds_corrections:
        (new,) = filter(None, corrected.groups())
        known[KIND_OF[new]] = new
    return scene.reply.format_map(known)


def test_every_reply_can_be_read_off():
    for scenes in (2, 4):
        for prompt in dialogue(scenes=scenes, num_prompts=400).prompts():
            assert (reply(prompt),) == prompt.references


def test_who_does_not_listen_to_the_end_is_wrong_on_half(test_split):
    """Must fail: the reader without corrections. It is the hack."""
    replies = [reply(prompt, heeds_corrections=False) for prompt in test_split.prompts]
    assert replies == [as_first_asked(prompt) for prompt in test_split.prompts]
    returns = test_split.returns([test_split.written(index, text) for index, text in enumerate(replies)])
    assert set(returns) == {0.0, 1.0}
    assert 0.4 < returns.mean() < 0.6


def test_a_wrong_detail_is_worth_nothing(test_split):
    bare = TextMDP(test_split.task, "rouge_l", test_split.tokenizer, split="test", max_new_tokens=24)
    for index, prompt in enumerate(test_split.prompts[:40]):
        for old in prompt.metadata["details"]:
            other = next(value for value in DETAILS[KIND_OF[old]] if value != old)
            wrong = test_split.written(index, prompt.references[0].replace(old, other))
            assert test_split.returns([wrong])[0] == 0
            assert bare.returns([wrong])[0] > 0.8  # must fail without the gate


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("A table for two people on Sunday at 7 pm, then.", 1),
        ("two people Sunday 7 pm", 1),  # the rest is ROUGE's business
        ("A table for two people on Sunday, then.", 0),
        ("A table for two people on Sunday at 7 pm or 8 pm, then.", 0),
        ("A table for two people on Sunday or Friday at 7 pm, then.", 0),
        ("", 0),
    ],
)
def test_what_counts_as_right(text, right):
    assert details_right([text], [("Sunday", "two people", "7 pm")]) == [right]


def test_no_detail_is_found_inside_another():
    values = list(KIND_OF)
    assert len(values) == sum(map(len, DETAILS.values()))
    assert not [(a, b) for a in values for b in values if a != b and f" {a}" in f" {b}"]


def test_difficulty():
    def prompts(**kwargs):
        env = gym.make("textgen_env/Dialogue-v0", task_kwargs={"num_prompts": 200, **kwargs})
        assert env.unwrapped.mdp.optimal_return() == 1
        return env.unwrapped.mdp.prompts

    assert {prompt.metadata["scene"] for prompt in prompts(scenes=4)} == set(SCENES)
    for share in (0, 1):
        for prompt in prompts(corrections=share):
            assert (prompt.metadata["details"] != prompt.metadata["first_details"]) == bool(share)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scenes": 0}, "scenes must lie between 1 and 4, got 0"),
        ({"scenes": 5}, "scenes must lie between 1 and 4, got 5"),
        ({"corrections": 1.5}, "corrections is a share from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        dialogue(**kwargs)
