"""Facts stated right, wrong and not at all; and the classic mixture on news summaries."""

import random

import gymnasium as gym
import pytest

import textgen_env  # noqa: F401  (registers the ids)
from reward_models import Coherence, Factual, Rouge
from reward_models.factual import claims, measure_claims
from textgen_env import RewardError, resolve_reward
from textgen_env.tasks.news_summary import news_summary
from textgen_env.tasks.news_templates import NAMES
from textgen_env.types import Completion, Prompt

FIRE = (("Fire", "ruins", "5 shops"), ("Fire", "place", "Brent"))
GRAPH = (("Ada", "lives in", "Paris"), ("Ben", "lives in", "Rome"), ("Ada", "likes", "old maps"))


@pytest.fixture(scope="module")
def news():
    return news_summary(400, seed=3).prompts()


def swapped(text, old, rng):
    """Another city, or another number of the same kind, in the place of the first one there is."""
    kind = next(kind for kind in ("city", "small", "hundred", "big") if old in NAMES[kind])
    return text.replace(old, rng.choice([name for name in NAMES[kind] if name != old]), 1)


def mean(measure, texts, prompts):
    scores = Factual(measure)(completions=texts, facts=[prompt.metadata["facts"] for prompt in prompts])
    assert all(0 <= score <= 1 for score in scores)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("measure", ["f1", "precision", "recall"])
def test_headlines_state_their_facts(news, measure):
    headlines = [prompt.references[0] for prompt in news]
    assert mean(measure, headlines, news) > 0.99
    assert mean("contradiction", headlines, news) == 0
    lower = [headline.lower() for headline in headlines]
    assert mean(measure, lower, news) > 0.99


def test_headlines_of_other_articles_do_not(news):
    others = [prompt.references[0] for prompt in news[1:]] + [news[0].references[0]]
    assert mean("f1", others, news) < 0.05


def test_a_wrong_city_is_a_contradiction_in_every_headline(news):
    rng = random.Random(0)
    wrong = [swapped(prompt.references[0], prompt.metadata["facts"][1][2], rng) for prompt in news]
    assert mean("f1", wrong, news) == pytest.approx(0.5)
    assert mean("contradiction", wrong, news) == pytest.approx(0.5)


def test_a_wrong_number_in_an_object_is_one_too(news):
    rng = random.Random(0)
    numbered = [prompt for prompt in news if numbers_in(prompt.metadata["facts"][0][2])]
    assert len(numbered) > 0.8 * len(news)
    wrong = [swapped(p.references[0], numbers_in(p.metadata["facts"][0][2])[0], rng) for p in numbered]
    assert mean("f1", wrong, numbered) == pytest.approx(0.5)
    assert mean("contradiction", wrong, numbered) == pytest.approx(0.5)


def numbers_in(text):
    return [word for word in text.split() if word[0].isdigit()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fire ruins 5 shops in Brent", [FIRE[0], FIRE[1]]),
        ("FIRES RUINED FIVE SHOPS NEAR BRENT!", [FIRE[0], FIRE[1]]),
        ("The fire that ruined all of the 5 shops", [FIRE[0]]),
        ("Fire ruins 7 shops in Brent", [("Fire", "ruins", "7"), FIRE[1]]),
        ("Fire ruins 5 shops in Arlow", [FIRE[0], ("Fire", "place", "Arlow")]),
        ("Fire ruins shops", []),  # it says less, not something else
        ("Ruins of 5 shops in Brent: a fire", []),  # not in order
        ("Fire in Brent, in Arlow, in Galen", [FIRE[1], ("Fire", "place", "Arlow"), ("Fire", "place", "Galen")]),
        ("Rain fell. 5 shops in Brent", []),  # nobody ruins them
        ("Fire. It ruins 5 shops", []),  # a pronoun is beyond it
        ("Fire ruins nothing much at all but, it is said, 5 shops", []),  # too far apart
        ("Fire starts in the night", []),  # "night" is no place's name
        ("", []),
        ("🔥\x00", []),
    ],
)
def test_claims(text, expected):
    assert sorted(claims(text, FIRE)) == sorted(expected)


def test_the_object_of_another_fact_is_a_rival_whatever_it_is():
    facts = [("cats", "eat", "mice"), ("cows", "eat", "grass")]
    assert claims("Cats eat grass.", facts) == [("cats", "eat", "grass")]
    assert claims("Cats eat leaves.", facts) == []  # the graph knows nothing of leaves


@pytest.mark.parametrize(
    ("claimed", "precision", "recall", "contradiction"),
    [
        ([], 0, 0, 0),
        ([GRAPH[0]], 1, 1 / 3, 0),
        ([GRAPH[0], GRAPH[0], ("ada", "LIVED in", "paris")], 1, 1 / 3, 0),  # one and the same
        ([GRAPH[0], ("Ada", "likes", "new maps")], 1 / 2, 1 / 3, 1 / 3),
        ([("Ada", "lives in", "Rome"), ("Cleo", "lives in", "Rome")], 0, 0, 1 / 3),
        (GRAPH, 1, 1, 0),
        ([*GRAPH, ("Ada", "lives in", "Oslo")], 3 / 4, 1, 1 / 3),
    ],
)
def test_measures_by_hand(claimed, precision, recall, contradiction):
    f1 = 2 * precision * recall / (precision + recall) if precision else 0
    expected = {"precision": precision, "recall": recall, "f1": f1, "contradiction": contradiction}
    assert measure_claims(claimed, GRAPH) == pytest.approx(expected)


def test_numbers_are_compared_as_numbers():
    facts = [("Club", "sells", "12,000 tickets")]
    assert Factual()(["Club sells 12000 tickets"], facts=[facts]) == [1]
    assert claims("Club sells 12,500 tickets", facts) == [("Club", "sells", "12,500")]
    assert claims("Club sells 1.5 tickets", [("Club", "sells", "15 tickets")]) == [("Club", "sells", "1.5")]


def test_aliases_are_other_words_for_the_same():
    text = "Blaze destroys 5 shops in the capital"
    assert Factual()([text], facts=[FIRE]) == [0]
    aliases = {"Fire": ["blaze"], "ruins": ["destroys"], "Brent": ["the capital"]}
    assert Factual(aliases=aliases)([text], facts=[FIRE]) == [1]
    assert Factual(aliases={**aliases, "place": ["around"]})(["Blaze around Brent"], facts=[FIRE]) == [
        pytest.approx(2 / 3)
    ]


def test_an_extractor_of_ones_own():
    def extract(text, facts):
        assert facts == list(GRAPH)
        return [tuple(claim.split("|")) for claim in text.split(";")]

    reward = Factual("precision", extractor=extract)
    assert reward(["Ada|lives in|Paris;Ben|lives in|Oslo"], facts=[GRAPH]) == [0.5]


def test_a_prompt_without_facts_is_not_judged():
    assert Factual()(["Fire", "Fire", "Fire"], facts=[None, [], FIRE]) == [None, None, 0]
    assert Factual()(["Fire ruins 5 shops in Brent"], facts=[[list(fact) for fact in FIRE]]) == [1]  # as JSON has them


@pytest.mark.parametrize(
    ("facts", "error", "message"),
    [
        ("Fire", TypeError, "facts are a list of triples"),
        (5, TypeError, "facts are a list of triples"),
        ({"Fire": "Brent"}, TypeError, "facts are a list of triples"),
        ([("Fire", "Brent")], TypeError, r"a fact is three strings .* got \('Fire', 'Brent'\)"),
        ([("Fire", "ruins", 5)], TypeError, "a fact is three strings"),
        ([("Fire", "ruins", "🔥")], ValueError, "'🔥' has no word to look for"),
    ],
)
def test_malformed_facts_are_named(facts, error, message):
    with pytest.raises(error, match=message):
        Factual()(["Fire ruins 5 shops"], facts=[facts])


def test_wrong_settings_name_the_mend():
    with pytest.raises(ValueError, match="did you mean 'precision'"):
        Factual("precison")
    with pytest.raises(TypeError, match="a list of others, not to one string"):
        Factual(aliases={"Fire": "blaze"})


def test_a_task_without_facts_is_told_so():
    with pytest.raises(RewardError, match="wants an argument 'facts'"):
        resolve_reward("factual").score([Completion(Prompt("say", metadata={"fact": ()}), "a", (1,), "eos")])


@pytest.mark.parametrize("text", ["Fire in " * 15_000, "ruins " * 20_000, "x" * 100_000, "5 " * 50_000])
def test_very_long_texts_end(text):
    (score,) = Factual()([text], facts=[FIRE])
    assert 0 <= score <= 1


@pytest.mark.parametrize(
    "name", ["factual", "factual_precision", "factual_recall", "factual_contradiction", "coherence"]
)
def test_by_name(name):
    reward = resolve_reward(name)
    assert (reward.name, reward.kind, reward.bounds) == (name, "terminal", (0.0, 1.0))


def test_the_classic_mixture_is_one_line():
    env = gym.make("textgen_env/NewsSummary-v0", reward=0.6 * Rouge("L") + 0.3 * Coherence() + 0.1 * Factual())
    _, info = env.reset(seed=0)
    mdp = env.unwrapped.mdp
    prompt = next(prompt for prompt in mdp.prompts if prompt.text == info["prompt"])
    tokens = mdp.tokenizer.encode_completion(prompt.text, prompt.references[0])
    for token in tokens:
        _, reward, terminated, _, info = env.step(int(token))
    assert terminated
    weighted = {name: part["weighted"] for name, part in info["reward"].items()}
    assert weighted == pytest.approx({"rouge_l": 0.6, "coherence": 0.3, "factual": 0.1})
    assert reward == pytest.approx(1)
