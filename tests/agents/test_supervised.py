import math

import pytest
import torch

from agents.micro_batches import MicroBatches
from agents.model_source import load_model
from agents.policy import TextPolicy
from agents.supervised import SupervisedConfig, accumulate_pairs, reference_pairs, supervised_fit
from tests.agents.conftest import (
    gpt2_config,
    gradients,
    largest_gap,
    make_mdp,
    make_policy,
    pair_loss,
    weights,
    word_tokenizer,
)
from textgen_env import TextMDP, TextTask

PAIRS = [("a", "b c"), ("b c d", ["d", "e f"]), ("d e", "f f f f"), ("f", None)]


def make_reference_mdp(**kwargs):
    task = TextTask.from_pairs({"train": PAIRS}, name="pairs")
    return TextMDP(task, lambda completions: [0.0] * len(completions), word_tokenizer("a b c d e f"), **kwargs)


def test_pairs_are_prompt_reference_and_eos():
    pairs = reference_pairs(make_reference_mdp())
    rows = [row[:length].tolist() for row, length in zip(pairs.input_ids_NS, pairs.lengths_N, strict=True)]
    assert rows == [[2, 3, 4, 1], [3, 4, 5, 5, 1], [3, 4, 5, 6, 7, 1], [5, 6, 7, 7, 7, 7, 1]]
    assert pairs.prompt_lengths_N.tolist() == [1, 3, 3, 2]


def test_pairs_keep_to_the_environments_limits():
    pairs = reference_pairs(make_reference_mdp(max_new_tokens=2))
    assert (pairs.lengths_N - pairs.prompt_lengths_N).tolist() == [2, 2, 2, 2]
    assert pairs.input_ids_NS[3, :4].tolist() == [5, 6, 7, 7]  # cut, so without its EOS


def test_no_references_is_an_error():
    task = TextTask.from_pairs({"train": ["a", "b"]}, name="bare")
    with pytest.raises(ValueError, match="split 'train' of task 'bare' has no references"):
        reference_pairs(TextMDP(task, lambda completions: [0.0], word_tokenizer("a b")))


@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.25])
def test_the_loss_is_cross_entropy_by_hand(prompt_loss_weight):
    """Each pair alone through the plain model; the EOS counts, the prompt only with its weight."""
    policy = make_policy(vocab_size=8)
    pairs = reference_pairs(make_reference_mdp())
    total = weight = answer_total = answer_count = 0.0
    for row, prompt, length in zip(pairs.input_ids_NS, pairs.prompt_lengths_N, pairs.lengths_N, strict=True):
        ids = row[: int(length)]
        log_probs = policy.model(input_ids=ids[None]).logits[0].log_softmax(-1).detach()
        for t in range(1, len(ids)):
            nll = -float(log_probs[t - 1, ids[t]])
            factor = 1.0 if t >= prompt else prompt_loss_weight
            total, weight = total + factor * nll, weight + factor
            if t >= prompt:
                answer_total, answer_count = answer_total + nll, answer_count + 1
    loss, answer_loss = pair_loss(policy, pairs, range(4), prompt_loss_weight)
    assert answer_count == 3 + 2 + 3 + 5
    assert float(loss.detach()) == pytest.approx(total / weight, abs=1e-12)
    assert answer_loss == pytest.approx(answer_total / answer_count, abs=1e-12)
    assert (answer_loss == pytest.approx(float(loss.detach()))) is (prompt_loss_weight == 0)


def test_the_loss_is_that_of_hugging_face_labels():
    policy, pairs = make_policy(vocab_size=8), reference_pairs(make_reference_mdp())
    columns = torch.arange(pairs.input_ids_NS.shape[1])
    outside = (columns < pairs.prompt_lengths_N[:, None]) | (columns >= pairs.lengths_N[:, None])
    labels = pairs.input_ids_NS.masked_fill(outside, -100)
    call = {"input_ids": pairs.input_ids_NS, "attention_mask": (columns < pairs.lengths_N[:, None]).long()}
    expected = policy.model(**call, labels=labels).loss  # which it computes in float32
    loss, _ = pair_loss(policy, pairs, range(4))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    outside[range(4), pairs.lengths_N - 1] = True  # must fail: labels that leave the EOS out
    without = policy.model(**call, labels=pairs.input_ids_NS.masked_fill(outside, -100)).loss
    assert abs(float((without - loss).detach())) > 1e-4


def test_padding_does_not_matter():
    policy, pairs = make_policy(vocab_size=8), reference_pairs(make_reference_mdp())
    expected = pair_loss(policy, pairs, range(4), 0.5)[0]
    outside = torch.arange(pairs.input_ids_NS.shape[1]) >= pairs.lengths_N[:, None]
    pairs.input_ids_NS[outside] = 5
    assert torch.equal(pair_loss(policy, pairs, range(4), 0.5)[0], expected)


@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.25])
@pytest.mark.parametrize("tokens", [7, 14, 1000])
def test_micro_batches_of_pairs_sum_to_the_mean(tokens, prompt_loss_weight):
    policy, pairs = make_policy(vocab_size=8), reference_pairs(make_reference_mdp())
    expected_loss, expected_answers = pair_loss(policy, pairs, range(4), prompt_loss_weight)
    expected_loss.backward()
    expected = gradients(policy)
    policy.zero_grad(set_to_none=True)
    micro_batches = MicroBatches(policy, SupervisedConfig(micro_batch_tokens=tokens))
    assert sum(1 for _ in pairs.micro_batches(tokens)) == {7: 4, 14: 2, 1000: 1}[tokens]
    answers = accumulate_pairs(policy, pairs, micro_batches, prompt_loss_weight)
    assert largest_gap(gradients(policy), expected) < 1e-12
    assert answers == pytest.approx(expected_answers, abs=1e-12)


def fresh_policy():
    return TextPolicy(load_model(gpt2_config(), 0), 8)


def test_fitting_learns_the_references():
    policy, mdp = fresh_policy(), make_mdp(prompts=["a", "b", "c d"])  # each answered by "a b"
    before = weights(policy.value_head)
    seen = []
    config = SupervisedConfig(epochs=60, batch_size=3, learning_rate=5e-3)
    last = supervised_fit(policy, mdp, config, on_step=lambda *step: seen.append(step))
    assert [step for step, *_ in seen] == list(range(1, 61))
    assert {total for _, total, _ in seen} == {60}
    assert seen[0][2] > 1.5
    assert last < 0.05
    assert largest_gap(weights(policy.value_head), before) == 0
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert not policy.model.training


def test_the_seed_decides_the_order_alone():
    def fitted(seed):
        policy = fresh_policy()
        state = torch.get_rng_state()
        config = SupervisedConfig(epochs=2, batch_size=2, learning_rate=5e-3)
        supervised_fit(policy, make_reference_mdp(), config, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return weights(policy)

    first, again, other = fitted(0), fitted(0), fitted(1)
    assert largest_gap(first, again) == 0
    assert largest_gap(first, other) > 0


def test_a_fraction_of_an_epoch_is_a_fraction_of_the_steps():
    seen = []
    config = SupervisedConfig(epochs=0.5, batch_size=1)
    supervised_fit(fresh_policy(), make_reference_mdp(), config, on_step=lambda *step: seen.append(step))
    assert len(seen) == 2  # of four pairs


def test_the_rate_rises_and_falls(monkeypatch):
    """A quarter of eight steps up in a line, then half a cosine down."""
    rates, step = [], torch.optim.AdamW.step

    def watched(optimiser, *args, **kwargs):
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    config = SupervisedConfig(epochs=2, batch_size=1, learning_rate=8e-3, warmup=0.25)
    supervised_fit(fresh_policy(), make_reference_mdp(), config)
    expected = [4e-3, 8e-3, *(4e-3 * (1 + math.cos(math.pi * step / 6)) for step in range(6))]
    assert rates == pytest.approx(expected)
