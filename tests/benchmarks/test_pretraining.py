import numpy as np
import pytest
import torch

from benchmarks import pretraining
from benchmarks.pretraining import (
    CHAIN,
    GOOD_TOKEN,
    LENGTH,
    OBJECTIVES,
    WORDS,
    all_texts,
    corpus,
    learn,
    least_divergence,
    log_probs_of_texts,
    main,
    markov_oracle,
    summary,
    truth,
)
from tests.agents.conftest import make_policy


@pytest.fixture(scope="module")
def known():
    return truth(markov_oracle(**CHAIN))


def test_the_truth_is_a_distribution_and_the_corpus_follows_it(known):
    assert np.exp(known.log_probs_X).sum() == pytest.approx(1)
    assert len(known.bad_X) == WORDS**LENGTH
    texts = corpus(markov_oracle(**CHAIN), 4000, seed=0)
    assert len(texts) == 4000
    assert {len(text.split()) for text in texts} == {LENGTH}
    rate = np.mean(["e d" in text for text in texts])
    assert rate == pytest.approx(known.bad_rate, abs=4 * (0.25 / 4000) ** 0.5)


def test_the_truth_is_at_no_divergence_and_the_conditioned_one_at_the_least(known):
    itself = known.figures(known.log_probs_X)
    assert itself.bad_rate == pytest.approx(known.bad_rate)
    assert (itself.kl_q_p, itself.excess) == pytest.approx((0, 0), abs=1e-12)
    assert itself.kl_good_q == pytest.approx(-np.log(1 - known.bad_rate))
    # Bad texts ten times rarer, all else as it was: on the bound.
    tilted_X = known.log_probs_X + np.log(0.1) * known.bad_X
    tilted_X -= np.log(np.exp(tilted_X).sum())
    tilted = known.figures(tilted_X)
    assert tilted.bad_rate < known.bad_rate / 5
    assert tilted.kl_q_p == pytest.approx(least_divergence(tilted.bad_rate, known.bad_rate))
    assert tilted.excess == pytest.approx(0, abs=1e-12)
    uniform = known.figures(np.full(len(tilted_X), -LENGTH * np.log(WORDS)))
    assert uniform.excess > 0.1  # must fail for a model that knows nothing


def test_every_texts_probability_is_that_of_its_words_in_turn():
    policy, prompt = make_policy(vocab_size=WORDS + 4), [1, 8]
    found = log_probs_of_texts(policy, prompt)
    assert np.exp(found).sum() == pytest.approx(1)
    for index in (0, 12_345, len(found) - 1):
        ids = [*prompt, *all_texts(LENGTH)[index].tolist()]
        logits = policy.model(input_ids=torch.tensor([ids])).logits[0, :, 2 : 2 + WORDS].detach()
        steps = logits.log_softmax(-1)
        expected = sum(float(steps[place - 1, ids[place] - 2]) for place in range(2, len(ids)))
        assert found[index] == pytest.approx(expected, abs=1e-9)


def test_asked_for_good_texts_a_conditional_model_writes_fewer_bad_ones(known):
    read = corpus(markov_oracle(**CHAIN), 1500, seed=0)
    rates = {}
    for objective in ("likelihood", "conditional"):
        found = learn(objective, read, 0, 80)
        assert found.finished
        prompt = [1, *([found.tokenizer.hf.convert_tokens_to_ids(GOOD_TOKEN)] if found.prompt else [])]
        rates[objective] = known.figures(log_probs_of_texts(found.policy, prompt)).bad_rate
    assert rates["conditional"] < 0.7 * rates["likelihood"]
    assert rates["likelihood"] == pytest.approx(known.bad_rate, abs=0.1)


def test_the_whole_is_written_down(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "OBJECTIVES", {name: OBJECTIVES[name] for name in ("likelihood", "filtering")})
    path = tmp_path / "found.json"
    threads = torch.get_num_threads()
    try:
        assert main(["--seeds", "1", "--texts", "200", "--steps", "2", "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "filtering" in capsys.readouterr().out
    assert '"bad_rate"' in path.read_text(encoding="utf-8")


def test_the_summary_is_over_seeds():
    results = [{name: {"bad_rate": rate} for name in OBJECTIVES} for rate in (0.1, 0.3)]
    mean, half = summary(results)["conditional"]["bad_rate"]
    assert (mean, half) == pytest.approx((0.2, 12.706 * 0.1))
