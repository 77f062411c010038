"""Coherence by rule and by model: told in order it is worth more than shuffled, mixed or repeated."""

import json
import math
import random

import pytest

from reward_models import Coherence
from reward_models.coherence import mutual_information
from reward_models.discourse import lexical_coherence, split_sentences
from reward_models.language_model import LanguageModel
from tests.reward_models import tiny_models as tiny

NAMES = ("Anna", "Ben", "Clara", "Dan", "Emma", "Frank", "Grace", "Henry")
PLACES = ("garden", "kitchen", "harbour", "forest", "library", "market")
THINGS = ("kite", "puzzle", "lantern", "violin", "ladder", "basket")


def synthetic(rng):
    """A small story: someone finds a thing somewhere, and the story stays with them."""
    name, friend = rng.sample(NAMES, 2)
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    return [
        f"{name} walked to the {place} early.",
        f"In the {place} stood a {thing}.",
        f"Nobody else wanted the {thing}, so {name} took it home.",
        f"Then {friend} asked {name} for it.",
        f"They still share the {thing} today.",
    ]


def shuffled(story, rng):
    while True:
        order = rng.sample(story, len(story))
        if order != story:
            return order


def mixed(stories, index, rng):
    """The first sentence, and later ones out of other stories, each in its place."""
    others = rng.sample([story for story in stories if story is not stories[index]], len(stories[index]) - 1)
    return [stories[index][0], *(story[place] for place, story in enumerate(others, start=1))]


def accuracies(coherence, stories, seed=0):
    """How often the original is above its shuffled and its mixed version; a tie is half a win."""
    rng = random.Random(seed)
    twins = [[shuffled(s, rng) for s in stories], [mixed(stories, i, rng) for i in range(len(stories))]]
    originals, *spoilt = (coherence([" ".join(sentences) for sentences in texts]) for texts in (stories, *twins))
    return [
        sum((a > b) + 0.5 * (a == b) for a, b in zip(originals, others, strict=True)) / len(stories)
        for others in spoilt
    ]


def lower_bound(accuracy, n):
    """Of the 95 % interval."""
    return accuracy - 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)


def test_stories_in_order_are_above_shuffled_and_mixed_ones():
    rng = random.Random(1)
    order, mixture = accuracies(Coherence(), [synthetic(rng) for _ in range(200)])
    assert order > 0.8
    assert mixture > 0.8


def test_on_real_stories(shared_data):
    """All 4,081: .744 ± .013 over shuffled, .772 ± .013 over mixed."""
    stories = read_stories(shared_data, 1000)
    for accuracy in accuracies(Coherence(), stories):
        assert lower_bound(accuracy, len(stories)) > 0.68


def test_a_real_model_on_real_stories(shared_data):
    """600 of them with 260k parameters: .718 ± .036 over shuffled, .777 ± .033 over mixed."""
    stories = read_stories(shared_data, 60)
    coherence = Coherence(shared_data("stories260K/hf"), device="cpu", batch_size=100)
    for accuracy in accuracies(coherence, stories):
        assert lower_bound(accuracy, len(stories)) > 0.55


def read_stories(shared_data, count):
    with shared_data("rocstories/val.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [[*record["context"], record["ending"]] for record in records]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("🙂 ... !", 0.0),
        ("Tom saw a dog. It barked.", 1.0),  # half known, half new
        ("It barked. Tom saw a dog.", 0.0),  # no antecedent; and the next sentence takes up nothing
        ("Tom saw a dog. Rain fell yesterday.", 0.0),  # nothing taken up
        ("Tom saw a dog. Tom saw a dog.", 0.0),  # nothing added
        ("Tom saw a dog. The dog saw rain.", 2 / 3),  # dog, saw | rain
        ("Tom saw a dog. A dog barked loudly.", 2 / 3 * 1 / 2 * 6 / 7),  # introduced twice; "a dog" twice
        ("Then Tom saw a dog. It barked.", 1 / 2),  # opens with "then"
        ("The girl ran. She laughed.", 1.0),
        ("Later he barked.", 0.0),  # nobody, and "later" than nothing
        ("He saw a dog. It barked.", 1 / 2),
        ("Fire ruins five shops in Brent", 1.0),  # one sentence
        ("the the the the", 1 / 3),  # one word pair of three
    ],
)
def test_the_rule_by_hand(text, expected):
    assert Coherence()([text]) == pytest.approx([expected])


def test_repetition_does_not_pay():
    rng = random.Random(2)
    for _ in range(20):
        story = synthetic(rng)
        looped = [story[0]] * 5
        assert lexical_coherence(story) > 0.2 > 0.01 > lexical_coherence(looped)
        assert lexical_coherence(story) > lexical_coherence(story[:2] * 3)


def test_the_prompt_may_stand_before():
    coherence = Coherence(with_prompt=True)
    prompt = "Tom saw a dog in the rain."
    good, alien = coherence(["He took the dog home happily.", "Prices rose in March."], prompts=[prompt, prompt])
    assert good > 0.5 > alien
    assert Coherence()(["He took the dog home happily."])[0] < good  # alone, "he" is nobody
    with pytest.raises(ValueError, match="call it with prompts="):
        coherence(["He ran."])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Fox met J. Smith. He ran.", ["Mr. Fox met J. Smith.", "He ran."]),
        ('"Stop." He ran .\nEnd', ['"Stop."', "He ran .", "End"]),
        ("It cost 3.5 dollars...", ["It cost 3.5 dollars..."]),
        ("雨。猫！", ["雨。", "猫！"]),
        ("\n \n", []),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


@pytest.mark.parametrize(
    "text", ["a\x00b", "." * 100_000, "a. " * 30_000, '."' * 50_000, "\n" * 100_000, "A." * 50_000]
)
def test_any_text_is_judged_and_none_takes_long(text):
    (score,) = Coherence()([text])
    assert 0 <= score <= 1


def test_mutual_information_by_hand():
    """Two sentences after the first: log p(both | first) less each alone, over their tokens."""
    lm = LanguageModel(tiny.gpt2(), tiny.lm_tokenizer())
    first, second, third = "the cat sat.", "rain fell.", "a dog ran."
    tokenizer = tiny.lm_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in (first, " " + second, " " + third)]
    start = [tokenizer.eos_token_id]
    together, *alone = lm.log_likelihoods([(ids[0], ids[1] + ids[2]), (start, ids[1]), (start, ids[2])])
    expected = (together - sum(alone)) / len(ids[1] + ids[2])
    assert abs(expected) > 1e-3
    text = f"{first} {second} {third}"
    model = Coherence(tiny.gpt2(), tokenizer=tokenizer)
    assert model([text, "one sentence", "", text]) == pytest.approx([expected, 0, 0, expected], abs=1e-5)
    assert mutual_information(lm, [[second, third]], [[first]]) == pytest.approx([expected], abs=1e-5)
    prompted = Coherence(tiny.gpt2(), tokenizer=tokenizer, with_prompt=True)
    assert prompted([f"{second} {third}"], prompts=[first]) == pytest.approx([expected], abs=1e-5)
    assert (model.bounds, Coherence().bounds) == (None, (0.0, 1.0))


def test_settings_of_a_model_want_a_model():
    with pytest.raises(TypeError, match="has no model for batch_size, device: pass one"):
        Coherence(device="cpu", batch_size=3)
    with pytest.raises(TypeError, match=r"completions\[0\] is int"):
        Coherence()([3])
