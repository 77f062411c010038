"""Q heads by hand, one forward for all places, and acting on them without ever leaving what is allowed."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.policy import entropy
from agents.q_policy import DuellingHeads, QPolicy, actions_of, spread
from agents.rollout import Collector
from tests.agents.conftest import gpt2_config, largest_gap, make_env, make_mdp, weights

VOCAB = 8


def make_q_policy(dtype=torch.float64, vocab_size=VOCAB, **kwargs):
    """Every weight far from its initial value, the slow copy's too."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = AutoModelForCausalLM.from_config(gpt2_config(vocab_size), attn_implementation="sdpa").to(dtype)
    policy = QPolicy(model, vocab_size, **kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return policy


def not_after_itself(prompt, actions, tokenizer):
    return [token for token in range(tokenizer.vocab_size) if token not in actions[-1:]]


def play(policy, *, masked=False, samples=1, **kwargs):
    mdp = make_mdp(allowed_tokens=not_after_itself if masked else None)
    return Collector(make_env(5, mdp=mdp), policy, seed=0).collect(12, samples_per_prompt=samples, **kwargs)


# --- heads ------------------------------------------------------------------------------------------------


def random_heads(count):
    heads = DuellingHeads(6, 5, count).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return heads, torch.randn(7, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 3])
def test_the_heads_by_hand(count):
    heads, hidden = random_heads(count)
    advantages = heads.advantage(hidden).reshape(7, count, 5)
    q = heads.value(hidden)[:, :, None] + advantages - advantages.mean(-1, keepdim=True)
    assert torch.allclose(q.mean(-1), heads.value(hidden))  # the mean advantage of a state is 0
    actions = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    assert torch.allclose(heads.mean(hidden), q.mean(1), atol=1e-12)
    assert torch.allclose(heads.taken(hidden, actions), q[torch.arange(7), :, actions].T, atol=1e-12)
    assert torch.equal(heads.best(hidden), q.mean(1).argmax(-1))
    allowed = torch.ones(7, 5, dtype=torch.bool)
    allowed[torch.arange(7), heads.best(hidden)] = False
    assert torch.equal(heads.best(hidden, allowed), q.mean(1).masked_fill(~allowed, -torch.inf).argmax(-1))
    assert (heads.best(hidden, allowed) != heads.best(hidden)).all()


def test_reading_few_rows_gives_the_gradients_of_reading_all():
    actions = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    found = []
    for few in (True, False):
        heads, hidden = random_heads(2)
        hidden.requires_grad_()
        if few:
            q = heads.taken(hidden, actions)
        else:
            advantages = heads.advantage(hidden).reshape(7, 2, 5)
            everything = heads.value(hidden)[:, :, None] + advantages - advantages.mean(-1, keepdim=True)
            q = everything[torch.arange(7), :, actions].T
        q.pow(2).sum().backward()
        found.append({"hidden": hidden.grad, **{name: p.grad for name, p in heads.named_parameters()}})
    assert largest_gap(*found) < 1e-12


def test_the_first_head_starts_at_nothing_and_twins_start_apart():
    hidden = 3 * torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    assert not DuellingHeads(16, VOCAB, 1).mean(hidden).any()
    twins = DuellingHeads(16, VOCAB, 2).taken(hidden, torch.zeros(50, dtype=torch.long)).detach()
    assert not twins[0].any()
    assert 0.1 < twins[1].std() < 1
    assert torch.equal(torch.random.get_rng_state(), before)


# --- acting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("samples", [1, 4])
def test_acting_logits_are_those_of_the_equations(prior, samples):
    policy = make_q_policy(beta=3.0, prior=prior, num_heads=2)
    episodes = play(policy, samples=samples)
    hidden, lm_logits = policy.read(episodes)
    q = policy.q_heads.mean(hidden)
    logits = 3.0 * q + (torch.log_softmax(lm_logits, -1) if prior else 0)
    expected = torch.log_softmax(logits, -1)
    log_probs, values, entropies = policy.score(episodes)
    mask = episodes.action_mask_BT
    actions = actions_of(episodes)
    assert torch.allclose(log_probs[mask], expected.gather(-1, actions[:, None])[:, 0], atol=1e-10)
    assert torch.allclose(entropies[mask], entropy(expected), atol=1e-10)
    state_values = policy.value_head(hidden)[:, 0] if prior else q.max(-1).values
    assert torch.allclose(values[mask], state_values, atol=1e-10)
    assert torch.allclose(episodes.log_probs_BT[mask], log_probs[mask], atol=1e-9)  # the sampler's, by its cache
    assert torch.allclose(episodes.values_BT[mask], values[mask], atol=1e-9)


def test_one_forward_gives_q_at_every_place():
    policy = make_q_policy()
    episodes = play(policy, samples=4)
    hidden, lm_logits = policy.read(episodes)
    at = 0
    for row in range(len(episodes)):
        prompt = int(episodes.prompt_lengths_B[row])
        for t in range(int(episodes.lengths_B[row])):
            output = policy.model(episodes.input_ids_BS[row : row + 1, : prompt + t], output_hidden_states=True)
            assert torch.allclose(hidden[at], output.hidden_states[-1][0, -1], atol=1e-10)
            assert torch.allclose(lm_logits[at], output.logits[0, -1], atol=1e-10)
            assert int(actions_of(episodes)[at]) == int(episodes.input_ids_BS[row, prompt + t])
            at += 1
    assert at == len(hidden)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_masks_leave_no_mass_on_a_forbidden_action(prior, greedy):
    policy = make_q_policy(beta=0.5, prior=prior)
    free, masked = play(policy, greedy=greedy), play(policy, masked=True, greedy=greedy)

    def repeats(episodes):
        return sum(
            first == second
            for completion in episodes.completions
            for first, second in zip(completion.token_ids, completion.token_ids[1:], strict=False)
        )

    assert repeats(free) > 0
    assert repeats(masked) == 0
    log_probs, *_ = policy.score(masked)
    assert torch.isfinite(log_probs).all()
    assert torch.allclose(log_probs, masked.log_probs_BT, atol=1e-9)
    forbidden = masked.replace(input_ids_BS=masked.input_ids_BS.clone())
    row = int(masked.lengths_B.argmax())
    second = int(masked.prompt_lengths_B[row]) + 1
    forbidden.input_ids_BS[row, second] = forbidden.input_ids_BS[row, second - 1]
    assert policy.score(forbidden)[0][row, 1].item() == -torch.inf


# --- the slow copy ----------------------------------------------------------------------------------------


def test_the_slow_copy_follows():
    policy = make_q_policy(torch.float32, num_heads=2)
    own = {name: value for name, value in weights(policy).items() if not name.startswith("target.")}
    before = weights(policy.target)
    assert largest_gap(own, before) > 0.1
    policy.update_target(0.25)
    expected = {name: 0.75 * before[name] + 0.25 * own[name] for name in own}
    assert largest_gap(weights(policy.target), expected) < 1e-6
    policy.update_target(1.0)
    assert largest_gap(weights(policy.target), own) == 0
    after = {name: value for name, value in weights(policy).items() if not name.startswith("target.")}
    assert largest_gap(after, own) == 0
    assert not any(parameter.requires_grad for parameter in policy.target.parameters())
    assert all(parameter.requires_grad for name, parameter in policy.named_parameters() if "target" not in name)


def test_spread_puts_places_back():
    mask = torch.tensor([[True, False, False], [True, True, False]])
    assert spread(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1, 0, 0], [2, 3, 0]]
    both = spread(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), mask)
    assert both.tolist() == [[[1, 0, 0], [2, 3, 0]], [[4, 0, 0], [5, 6, 0]]]


@pytest.mark.parametrize("wrong", [{"num_heads": 0}, {"beta": 0.0}])
def test_bad_options_are_refused(wrong):
    with pytest.raises(ValueError, match="must be above 0"):
        make_q_policy(**wrong)
