import math

import pytest

from agents.alignment.inputs import likelihoods
from agents.alignment.texts import self_bleu, text_figures
from reward_models.language_model import ConditionalLikelihood, LanguageModel
from tests.reward_models import tiny_models as tiny


def test_self_bleu_of_texts_that_are_alike_is_100_and_of_strangers_0():
    assert self_bleu(["the cat sat on the mat"] * 5) == pytest.approx(100)
    assert self_bleu(["rain"] * 3) == pytest.approx(100)  # shorter than four words
    assert self_bleu(["one two three four", "five six seven eight"]) == pytest.approx(0)
    assert self_bleu(["a b c d", "a b c d", "a b x y"]) < 100
    assert self_bleu(["a b", "", " "]) is None


def test_self_bleu_of_many_texts_draws_some():
    texts = ["a b c d"] * 30 + [f"{n} {n + 1}" for n in range(30)]
    assert self_bleu(texts, most=10) == self_bleu(texts, most=10)
    assert self_bleu(texts, most=10, seed=1) != self_bleu(texts, most=10, seed=2)


def test_length_and_variety():
    found = text_figures(["p", "p", "q"], ["a b", "a b c d", "a"])
    assert found.words.value == pytest.approx(7 / 3)
    assert found.distinct_1 == pytest.approx(4 / 7)
    assert found.perplexity is found.log_likelihood is None


def test_fluency_is_the_language_models_own():
    prompts, texts = ["the", "a dog", "night"], ["cat sat", "ran", "fell all night long"]
    lm = LanguageModel(tiny.gpt2(), tiny.lm_tokenizer(), device="cpu")
    found = text_figures(prompts, texts, likelihoods(lm))
    totals = ConditionalLikelihood(tiny.gpt2(), "total", tokenizer=tiny.lm_tokenizer(), device="cpu")(texts, prompts)
    tokens = sum(len(text) for _, text in lm.continuations(prompts, texts))
    assert found.log_likelihood.value == pytest.approx(sum(totals) / tokens, abs=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(-sum(totals) / tokens), rel=1e-5)
    low, high = found.perplexity.interval
    assert low <= found.perplexity.value <= high
