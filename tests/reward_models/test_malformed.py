"""Malformed inputs and plug-ins: what comes back is a score or a clear error, never a crash inside or a made-up number.

Inputs are generated (hypothesis, always the same ones); every case is one call of ``Reward.score`` on real completions.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
import math
import random
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import reward_models
from reward_models import (
    AsyncJudge,
    BannedWords,
    BertScore,
    Bleu,
    Cached,
    Chrf,
    Classifier,
    Clip,
    Coherence,
    ConditionalLikelihood,
    Distinct,
    EditSimilarity,
    ExactMatch,
    Factual,
    Fluency,
    Gate,
    Instructions,
    JsonFormat,
    KeywordCoverage,
    Length,
    LexiconSentiment,
    Meteor,
    Normalise,
    Perplexity,
    PotentialShaping,
    RegexMatch,
    Rouge,
    RougeMean,
    SemanticSimilarity,
    Spread,
    Ter,
    TokenF1,
)
from reward_models.preference import RewardEnsemble, RewardModel
from tests.reward_models import tiny_models as tiny
from textgen_env import Completion, Prompt, resolve_reward
from textgen_env.reward import Reward, RewardError
from textgen_env.types import Scores

READY: list[Any] = [
    *(Rouge(variant) for variant in ("1", "2", "L", "Lsum")),
    Rouge("L", "recall", aggregate="mean", use_stemmer=True),
    Bleu(),
    Bleu(smoothing="floor", tokenize="intl"),
    Chrf(),
    Chrf(word_order=2),
    Ter(max_words=50),
    Ter(normalized=True, max_words=50),
    Meteor(synonyms=False),
    ExactMatch(),
    TokenF1(),
    EditSimilarity(),
    EditSimilarity("words"),
    KeywordCoverage("concepts"),
    KeywordCoverage(["dog", "C++"], match="stem"),
    KeywordCoverage("concepts", match="anywhere", mode="all"),
    BannedWords("concepts"),
    Length(4),
    Length(low=2, high=9, unit="tokens"),
    RegexMatch(r"\w+ \d+"),
    Distinct(),
    Distinct(3, "characters"),
    JsonFormat(["a"], "fraction"),
    Instructions(),
    Instructions(column=None, mode="all"),
    LexiconSentiment(),
    Coherence(),
    Coherence(with_prompt=True),
    *(Factual(measure) for measure in ("f1", "precision", "contradiction")),
    0.6 * Rouge("L") + 0.3 * Coherence() + 0.1 * Factual(),
    RougeMean(),
    Clip(Bleu(), 0.1, 0.9),
    Gate(JsonFormat(), EditSimilarity(), otherwise=-1.0),
    Normalise(Chrf()),
    Spread(TokenF1()),
    Cached(Rouge("1")),
    PotentialShaping(Rouge("2"), LexiconSentiment()),
    TokenF1() + Factual("recall") - 0.5 * KeywordCoverage("concepts", match="stem") * Instructions(mode="all"),
]
"""Every ready reward that needs no model, and compositions of them."""

WORDS = (*tiny.WORDS, "Tom", "he", "but", "not", "good", "dogs", "5", "12,000", "LEN", "FORBID", "“", "C++", "e\u0301")
ODD = (
    "", " ", "\n\n", "\0", "a\0b", "\ufeff", "\u2028", "👩\u200d👧 🇫🇷", "你好。再见！", "مرحبا", "{", "[" * 2000,
    '{"a": 1}', "1e999", "<s></s>", "[SEP]", "LEN 3; START a", "LEN x", "\ud800", "a\udfffb", "%s {} {completion}",
    "." * 500, "!?" * 99, "-" * 99, "a\u0301" * 50, "\x1b[31m", "x" * 3000, "ab " * 400, "'" * 300,
)  # fmt: skip
NO_TEXT: tuple[Any, ...] = (None, 3, 2.5, math.nan, b"bytes", ["a"], {"a": 1}, object(), Path("a"), np.array(["a"]))

text = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join),
    st.text(max_size=40),
    st.sampled_from(ODD),
)
anything = st.one_of(text, text, text, text, text, text, text, st.sampled_from(NO_TEXT))
part = st.one_of(st.sampled_from(WORDS), text)
fact = st.one_of(st.tuples(part, part, part), st.just(("cat", "sat on", "mat")), st.just(("dog", "ran to", "12,000")))
instruction = st.sampled_from(("LEN 2-9", "CONTAINS cat", "END house", "START 日", ["FORBID", "dog"]))
malformed = {
    "facts": st.one_of(st.lists(st.sampled_from((None, "abc", ("a",), (1, 2, 3))), min_size=1), st.just("facts")),
    "concepts": st.sampled_from(("dog", [None], [""], 7, {"a": 1})),
    "constraints": st.sampled_from((["END"], ["JUMP 3"], ["LEN 9-2"], [5], 7, "LEN ; START")),
}
wellformed = {
    "facts": st.lists(fact, max_size=3),
    "concepts": st.lists(part, max_size=3),
    "constraints": st.one_of(st.lists(instruction, max_size=3), text),
}
either = {name: st.one_of(*[wellformed[name]] * 6, malformed[name], st.none()) for name in wellformed}
metadata = st.one_of(*[st.fixed_dictionaries(either)] * 5, st.fixed_dictionaries({}, optional=either))
references = st.one_of(*[st.lists(text, min_size=1, max_size=3)] * 6, st.lists(anything, max_size=2))


asked = st.sampled_from(("Write. LEN 1-20", "CONTAINS cat; FORBID dog"))


@st.composite
def completions(draw: st.DrawFn, texts: Any = anything) -> Completion:
    prompt = Prompt(draw(st.one_of(texts, texts, asked)), draw(references), draw(metadata))  # type: ignore[arg-type]
    ids = tuple(draw(st.lists(st.integers(2, 90), min_size=1, max_size=4)))
    return Completion(prompt, draw(texts), ids, draw(st.sampled_from(("eos", "length"))), _decode)


def _decode(ids: Sequence[int]) -> str:
    return " ".join(WORDS[token % len(WORDS)] for token in ids)


generated = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=(Phase.generate,),
)


class Outcome(collections.Counter[str]):
    """How many calls ended in a score, and how many in an error."""


def judged(reward: Any, batch: list[Completion], tally: Outcome | None = None) -> Scores | None:
    """Score a batch; fail unless it ends in finite scores that add up, or in an error that a reader understands."""
    made = resolve_reward(reward)
    tally = Outcome() if tally is None else tally
    try:
        scores = made.score(batch)
    except (RewardError, TypeError, ValueError) as error:
        tally["error"] += 1
        _check_error(error, made, batch)
        return None
    tally["score"] += 1
    assert all(isinstance(item.text, str) for item in batch), "a score was made up for what is no text"
    _check_scores(scores, made, batch)
    return scores


def _check_scores(scores: Scores, reward: Reward, batch: list[Completion]) -> None:
    assert [len(rewards) for rewards in scores.token_rewards] == [len(item.token_ids) for item in batch]
    assert np.isfinite(scores.totals).all()
    paid = sum(component["weighted"] for component in scores.components.values())
    np.testing.assert_allclose(paid, scores.totals, rtol=1e-9, atol=1e-9)
    if reward.bounds is not None:
        low, high = reward.bounds
        assert low - 1e-9 <= scores.totals.min() <= scores.totals.max() <= high + 1e-9, "out of bounds"


def _check_error(error: Exception, reward: Reward, batch: list[Completion]) -> None:
    message = str(error)
    assert any(f"'{name}'" in message for name in (reward.name, *reward.component_names)), message
    assert "none of them fails that way alone" not in message, message
    assert len(message) < 3_000, "a wall of text in an error"
    if found := re.search(r" for completion (\d+) of (\d+): ", message):
        # A gate and a cache ask about some completions only, and count those.
        told = [batch[int(found[1])]] if int(found[2]) == len(batch) else batch
        assert any(repr(item.text)[:50].rstrip("'\"") in message for item in told)
    cause = error.__cause__
    while cause is not None and isinstance(cause, RewardError):
        cause = cause.__cause__
    if cause is not None:  # raised on purpose by the reward, not a crash somewhere inside of it
        raised_at = traceback.extract_tb(cause.__traceback__)[-1]
        on_purpose = (raised_at.line or "").startswith("raise ")
        assert on_purpose * isinstance(cause, TypeError | ValueError | TimeoutError), (
            f"crashed at {raised_at}: {message}"
        )


# --- every ready reward -----------------------------------------------------------------------------------


def test_ready_rewards_end_in_a_score_or_a_clear_error() -> None:
    """8,400 cases: every reward on the same 200 batches, of one or two completions."""
    tallies = [Outcome() for _ in READY]

    @settings(generated, max_examples=200)
    @given(st.lists(completions(), min_size=1, max_size=2))
    def check(batch: list[Completion]) -> None:
        for reward, tally in zip(READY, tallies, strict=True):
            judged(reward, batch, tally)

    check()
    for reward, tally in zip(READY, tallies, strict=True):
        assert min(tally["score"], tally["error"]) >= 3, (reward, tally)  # both ends were seen
    assert sum(map(Outcome.total, tallies)) >= 8_400


WALLS = {
    "100,000 letters": "a" * 100_000,
    "100,000 emoji": "😀" * 100_000,
    "20,000 words": " ".join(random.Random(0).choices(WORDS, k=20_000)),
    "10,000 sentences": "It ran. " * 10_000,
    "100,000 brackets": "[" * 100_000,
}


@pytest.mark.parametrize("wall", WALLS)
def test_a_wall_of_text_is_scored_or_refused(wall: str) -> None:
    """Where the work grows with the square of the length there is a limit that says so; else this would not end."""
    columns = {"facts": [("cat", "sat on", "mat")], "concepts": ["cat"], "constraints": ["CONTAINS cat"]}
    long = WALLS[wall]
    for reward in READY:
        judged(reward, [Completion(Prompt(long, (long[::-1], "the cat"), columns), long, (5, 6, 2), "eos", _decode)])


def test_texts_beyond_a_metrics_limit_are_refused_with_the_way_out() -> None:
    words = WALLS["20,000 words"]
    for reward, way_out in (
        (Rouge("Lsum"), "Rouge('L')"),
        (Ter(), "EditSimilarity"),
        (Ter(normalized=True), "max_words"),
    ):
        with pytest.raises(RewardError) as refused:
            resolve_reward(reward).score([Completion(Prompt("p", (words,)), words, (2,), "eos")])
        assert way_out in str(refused.value)


def test_references_given_as_one_string_are_refused_where_they_are_written() -> None:
    with pytest.raises(TypeError, match="tuple of texts, got the string 'the cat'"):
        Prompt("Say:", "the cat")  # type: ignore[arg-type]


# --- rewards with a model ---------------------------------------------------------------------------------


@functools.cache
def scorers() -> list[Any]:
    encoder = {"tokenizer": tiny.encoder_tokenizer(), "batch_size": 4}
    causal = {"tokenizer": tiny.lm_tokenizer(), "batch_size": 4}
    return [
        Classifier(tiny.bert_classifier(num_labels=2), "LABEL_1", **encoder),
        Classifier(tiny.bert_classifier(num_labels=1), premise="prompt", **encoder),
        Classifier(tiny.gpt2_classifier(), 0, "logit", premise="reference", **causal),
        SemanticSimilarity(tiny.bert(), **encoder),
        BertScore(tiny.roberta(), **encoder),
        Fluency(tiny.gpt2(), "total", end=True, **causal),
        ConditionalLikelihood(tiny.llama(), **causal),
        Perplexity(tiny.gpt2(), **causal),
        Coherence(tiny.gpt2(), **causal),
        RewardEnsemble([small_reward_model(seed) for seed in (0, 1)], pessimism=1.0),
    ]


def small_reward_model(seed: int) -> RewardModel:
    sizes = {"vocab_size": 300, "width": 16, "heads": 2, "max_length": 64}
    return RewardModel.small(tiny.TEXTS * 4, seed=seed, device="cpu", **sizes)


@pytest.mark.filterwarnings("ignore:a text of .* tokens is cut:UserWarning")
def test_model_scorers_end_in_a_score_or_a_clear_error() -> None:
    """500 cases."""
    tallies = [Outcome() for _ in scorers()]

    @settings(generated, max_examples=50)
    @given(st.lists(completions(), min_size=1, max_size=2))
    def check(batch: list[Completion]) -> None:
        for reward, tally in zip(scorers(), tallies, strict=True):
            judged(reward, batch, tally)

    check()
    for reward, tally in zip(scorers(), tallies, strict=True):
        assert min(tally["score"], tally["error"]) >= 5, (reward, tally)
    assert sum(map(Outcome.total, tallies)) >= 500


@pytest.mark.filterwarnings("ignore:a text of .* tokens is cut:UserWarning")
def test_model_scorers_read_a_wall_of_text() -> None:
    long = WALLS["20,000 words"][:8_000]  # hundreds of the tiny models' windows
    for reward in scorers():
        assert judged(reward, [Completion(Prompt(long, ("the cat",)), long, (5, 2), "eos")]) is not None


# --- plug-ins ---------------------------------------------------------------------------------------------


class _Unprintable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


number = st.one_of(
    st.floats(),
    st.integers(),
    st.booleans(),
    st.sampled_from((10**400, -(10**400), np.float32(0.5), np.int64(3), 1e308)),
)
odd_value = st.one_of(
    st.none(), st.text(max_size=5), st.binary(max_size=3), st.complex_numbers(), st.just(_Unprintable()),
    st.sampled_from(({}, {"score": 1.0}, set(), object, len, np.array([["a"]]), np.zeros((2, 2)), np.array(None))),
)  # fmt: skip
value = st.one_of(number, number, number, st.lists(st.one_of(number, number, odd_value), max_size=3), odd_value)
answer = st.one_of(
    *[st.lists(value, min_size=2, max_size=2)] * 4, st.lists(value, max_size=4), value,
    st.lists(st.floats(-9, 9), min_size=2, max_size=2).map(np.array), st.tuples(value, value), st.just({"a": 1}),
)  # fmt: skip
PAIR = [
    Completion(Prompt("one", ("r",), {"facts": [["a", "b", "c"]]}), "first text", (5, 6), "eos"),
    Completion(Prompt("two", ("r", "s"), {"facts": []}), "second", (7,), "length"),
]


def _total(value: Any, tokens: int) -> float:
    """What an answer about one text pays, NaN if it is no reward: written apart from `Reward`."""
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list):
        plain = not any(isinstance(one, list) for one in value)
        return float(np.sum([_total(one, 1) for one in value])) if plain and len(value) == tokens else math.nan
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def test_whatever_a_plug_in_returns_is_paid_as_it_is_or_refused() -> None:
    """1,500 cases, against an oracle: exactly what is a finite reward for every completion is paid."""
    tally = Outcome()

    @settings(generated, max_examples=1_500)
    @given(answer)
    def check(given_back: Any) -> None:
        def plug_in(completions: list[str]) -> Any:
            return given_back

        scores = judged(plug_in, PAIR, tally)
        listed = given_back.tolist() if isinstance(given_back, np.ndarray) else given_back
        is_pair = isinstance(listed, list | tuple) and len(listed) == 2
        totals = list(map(_total, listed, (2, 1))) if is_pair else []
        assert (scores is not None) == (bool(totals) and all(map(math.isfinite, totals))), given_back
        if scores is not None:
            np.testing.assert_allclose(scores.totals, totals)

    check()
    assert tally.total() >= 1_500
    assert min(tally["score"], tally["error"]) >= 200, tally


RAISED = (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, RecursionError, StopIteration, MemoryError,
          AssertionError, UnicodeError, OSError, asyncio.TimeoutError, _Unprintable)  # fmt: skip


def test_a_plug_in_that_raises_is_named_with_its_text() -> None:
    """200 cases, plain and asynchronous."""

    @settings(generated, max_examples=200)
    @given(st.sampled_from(RAISED), st.text(max_size=300), st.booleans(), st.integers(0, 1))
    def check(error: type[Exception], message: str, is_async: bool, culprit: int) -> None:
        def plug_in(completions: list[str]) -> list[float]:
            if PAIR[culprit].text in completions:
                raise error(message)
            return [0.0] * len(completions)

        async def asynchronous(completions: list[str]) -> list[float]:
            return plug_in(completions)

        with pytest.raises(RewardError, match=f"for completion {culprit} of 2: '{PAIR[culprit].text}'") as raised:
            Reward(asynchronous if is_async else plug_in, name="mine").score(PAIR)
        assert "'mine' raised" in str(raised.value)

    check()


def test_a_plug_in_cannot_change_what_it_is_given() -> None:
    """100 cases: lists are emptied, at any depth, and the completions stay as they were."""

    def vandal(completions: list[str], **columns: Any) -> list[float]:
        count = len(completions)
        for column in (completions, *columns.values()):
            _empty(column)
        return [0.0] * count

    @settings(generated, max_examples=100)
    @given(st.lists(completions(texts=text), min_size=1, max_size=2))
    def check(batch: list[Completion]) -> None:
        before = repr(batch)
        Reward(vandal).score(batch)
        assert repr(batch) == before

    check()


def _empty(value: Any) -> None:
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _empty(item)
        value.clear()


async def _never(completion: str) -> float:
    await asyncio.Event().wait()
    return 0.0


async def _stubborn(completion: str) -> float:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("called off") from None


async def _text(completion: str) -> Any:
    return completion


@pytest.mark.parametrize("function", [_never, _stubborn, _text])
def test_judges_that_never_answer_or_answer_nonsense_end(function: Any) -> None:
    judge = AsyncJudge(function, timeout=0.01, retries=1, backoff=0.0)
    with pytest.raises(RewardError, match=f"'{function.__name__}' .*first text"):
        resolve_reward(judge).score(PAIR)


# --- must fail --------------------------------------------------------------------------------------------


def _swallows(completions: list[str]) -> list[float]:
    try:
        return [1 / len(text.split()) for text in completions]
    except Exception:
        return [0.0] * len(completions)


def _crashes(completions: list[str]) -> list[float]:
    return [float(len(text.split()[0])) for text in completions]


class _OutOfBounds:
    name, kind, bounds = "bold", "terminal", (0.0, 1.0)

    def __call__(self, completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("twin", "given_text", "seen"),
    [
        (_swallows, None, "made up"),  # an error turned into 0
        (_crashes, "", "crashed at"),  # an index out of range, deep inside
        (_OutOfBounds(), "long", "out of bounds"),
    ],
)
def test_the_checks_see_a_reward_that_misbehaves(twin: Callable[..., Any], given_text: Any, seen: str) -> None:
    judged(twin, [Completion(Prompt("p"), "a", (2,), "eos")])
    with pytest.raises(AssertionError, match=seen):
        judged(twin, [Completion(Prompt("p"), given_text, (2,), "eos")])


def test_every_ready_reward_is_among_the_cases() -> None:
    """A reward that joins the package joins these tests."""
    classes = {name for name in reward_models.__all__ if inspect.isclass(getattr(reward_models, name))}
    tested = {type(one).__name__ for one in (*READY, *scorers())} | {"RewardModel"}
    here = Path(__file__).read_text(encoding="utf-8")
    other = {"Composable", "conversational", "from_rl4lms", "to_trl", "DiscriminatorConfig"}
    other |= {"Discriminator"}  # it reads token ids, which the environment makes
    inside = {"Product", "Ratio", "PotentialDifference", "WeightedSum"}  # what operators and shaping make
    assert not {name for name in classes - tested - other - inside if f"{name}(" not in here}
