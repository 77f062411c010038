import itertools
import json

import numpy as np
import pytest
import torch

from agents.callbacks import CheckpointCallback, EvaluationCallback
from agents.evaluation import Evaluation, bootstrap_interval, difference, distinct, evaluate, on_split
from tests.agents.conftest import PROMPTS, letters, make_agent, make_env, make_mdp, weights, word_tokenizer
from textgen_env import TextMDP, TextTask, dense


@pytest.fixture(scope="module")
def agent():
    return make_agent()


def test_the_mean_is_the_rewards_of_the_samples(agent):
    found = evaluate(agent, make_mdp(), num_prompts=4, samples_per_prompt=3)
    expected = letters([s.completion for s in found.samples], [s.prompt for s in found.samples])
    assert [s.score for s in found.samples] == pytest.approx(expected, abs=1e-6)
    assert found.scores == pytest.approx(np.reshape(expected, (4, 3)).mean(-1), abs=1e-6)
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.components == {"letters": pytest.approx(found.mean)}
    assert found.interval[0] <= found.mean <= found.interval[1]
    assert found.num_prompts == 4
    assert {s.reference for s in found.samples} == {"a b"}


def test_the_prompts_are_drawn_once_each_and_the_same_for_a_seed(agent):
    first, again, other = (evaluate(agent, make_mdp(), num_prompts=3, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.samples != other.samples
    everything = evaluate(agent, make_mdp(), num_prompts=100)
    assert sorted(s.prompt for s in everything.samples) == sorted(PROMPTS)


def test_the_agent_stays_as_it_is(agent):
    before, state = weights(agent.policy), agent.collector.state()
    evaluate(agent, make_mdp(), num_prompts=3)
    assert all(torch.equal(before[name], value) for name, value in weights(agent.policy).items())
    np.testing.assert_equal(agent.collector.state(), state)


def test_greedy_takes_the_likeliest_text_and_has_no_kl(agent):
    found = evaluate(agent, make_mdp(), greedy=True)
    assert found.kl_per_sequence is None
    assert [s.completion for s in found.samples] == agent.generate([s.prompt for s in found.samples], greedy=True)


def test_kl_is_zero_where_nothing_was_learned_and_positive_after():
    agent = make_agent()
    assert evaluate(agent, make_mdp()).kl_per_sequence == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        agent.policy.model.get_output_embeddings().weight *= 2
    found = evaluate(agent, make_mdp(), samples_per_prompt=50)
    assert found.kl_per_sequence > 0.1
    assert found.kl_interval[0] < found.kl_per_sequence < found.kl_interval[1]
    uniform = np.log(agent.policy.vocab_size)
    assert 0 < found.entropy < uniform


def test_without_a_reference_there_is_no_kl():
    found = evaluate(make_agent(kl_coef_per_sequence=0.0), make_mdp())
    assert found.kl_per_sequence is None


def test_dense_rewards_are_summed(agent):
    @dense
    def one_a_token(completion_ids):
        return [[1.0] * len(ids) for ids in completion_ids]

    found = evaluate(agent, make_mdp(one_a_token))
    assert found.mean == pytest.approx(found.mean_length)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"samples_per_prompt": 0}, "samples_per_prompt=0"),
        ({"greedy": True, "samples_per_prompt": 2}, "all equal"),
    ],
)
def test_bad_numbers(agent, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(agent, make_mdp(), **arguments)


def test_another_vocabulary_is_refused(agent):
    with pytest.raises(ValueError, match="agent's tokenizer"):
        evaluate(agent, make_mdp(words="a b c d e f g h"))


def test_on_split_keeps_everything_else():
    task = TextTask.from_pairs({"train": ["a", "b c d"], "validation": ["c"]})
    mdp = TextMDP(task, letters, word_tokenizer("a b c d"), max_new_tokens=7, truncation_side="right")
    held_out = on_split(mdp, "validation")
    assert [prompt.text for prompt in held_out.prompts] == ["c"]
    assert held_out.tokenizer is mdp.tokenizer
    assert held_out.reward is mdp.reward
    assert held_out.observation_space == mdp.observation_space
    assert held_out.truncation_side == "right"
    with pytest.raises(ValueError, match="no prompts in split 'test'"):
        on_split(mdp, "test")


def test_the_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, np.random.default_rng(1))
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(np.full(5, 0.5), np.random.default_rng(0)) == (0.5, 0.5)
    assert bootstrap_interval(values[:1], np.random.default_rng(0)) is None


def test_a_difference_is_paired(agent):
    before = evaluate(agent, make_mdp(), num_prompts=5)
    shifted = Evaluation.from_dict({**before.to_dict(), "scores": [score + 0.25 for score in before.scores]})
    change, interval = difference(before, shifted)
    assert (change, *interval) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="differ in prompt_indices"):
        difference(before, evaluate(agent, make_mdp(), num_prompts=4))


def test_an_evaluation_survives_json(agent):
    for greedy in (False, True):
        found = evaluate(agent, make_mdp(), greedy=greedy)
        assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict(samples=100)))) == found
    assert len(found.to_dict(samples=2)["samples"]) == 2


def test_distinct_counts_pairs_within_a_text_only():
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct(["", ""], 1) == 0


def test_the_callback_evaluates_at_the_start_and_every_so_many_tokens(tmp_path):
    agent = make_agent(make_env(mdp=make_mdp()))
    rows = []
    callback = EvaluationCallback(
        make_mdp(), every=100, num_prompts=3, samples_file=tmp_path / "s.jsonl", num_samples=2
    )
    evaluated = callback._evaluate
    callback._evaluate = lambda: (rows.append(agent.num_timesteps), evaluated())
    agent.learn(300, callback=callback)
    assert rows[0] == 0
    assert len(rows) >= 3
    assert all(later // 100 > earlier // 100 for earlier, later in itertools.pairwise(rows))
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(lines) == len(rows) * 2 * 2
    assert {line["step"] for line in lines} == set(rows)
    assert set(lines[0]) == {"step", "split", "greedy", "prompt", "completion", "reference", "score"}


@pytest.mark.parametrize(
    "make", [lambda: EvaluationCallback(make_mdp(), every=0), lambda: CheckpointCallback("x", every=0)]
)
def test_callbacks_refuse_an_interval_of_nothing(make):
    with pytest.raises(ValueError, match="at least 1 token"):
        make()


# --- best of n --------------------------------------------------------------------------------------------


def test_best_of_n_keeps_the_best_of_the_same_draws(agent):
    """Drawn with one seed, the completions are those of an evaluation with n samples a prompt."""
    every = evaluate(agent, make_mdp(), num_prompts=4, samples_per_prompt=6, seed=5)
    best = evaluate(agent, make_mdp(), num_prompts=4, samples_per_prompt=2, best_of=3, seed=5)
    drawn = np.reshape([sample.score for sample in every.samples], (4, 2, 3))
    assert best.scores == pytest.approx(drawn.max(-1).mean(-1), abs=1e-6)
    assert best.mean > every.mean
    assert len(best.samples) == 8
    assert best.kl_per_sequence is None
    assert best.mean == pytest.approx(np.mean([sample.score for sample in best.samples]), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"best_of": 0}, "best_of=0: each must be at least 1"), ({"best_of": 2, "greedy": True}, "all equal")],
)
def test_a_choice_that_is_none_is_refused(agent, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(agent, make_mdp(), **options)


def test_an_evaluation_written_before_there_was_a_choice_is_read(agent):
    found = evaluate(agent, make_mdp(), num_prompts=2)
    old = {key: value for key, value in found.to_dict().items() if key != "best_of"}
    assert Evaluation.from_dict(old) == found
