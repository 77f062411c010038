"""NLPO: a mask that is refreshed, is honoured on both sides of the update, and at top_p = 1 is no mask at all."""

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from agents import NLPO, PPO, NLPOConfig, evaluate
from agents.decoder import Decoder
from agents.nlpo import TopPDecoder, top_p_mask
from tests.agents.conftest import gpt2_config, largest_gap, make_env, make_mdp, make_policy, weights
from tests.agents.tree import COMPLETIONS, DEPTH, Tree, weighted_ascent

OPTIONS = {
    "seed": 3,
    "device": "cpu",
    "episodes_per_rollout": 12,
    "learning_rate": 3e-3,
    "learning_rate_schedule": "constant",
    "epochs": 2,
    "minibatches": 2,
}


def make_nlpo(env=None, **options):
    defaults = {"top_p": 0.7, "mask_refresh_rollouts": 3}
    return NLPO(gpt2_config(), make_env() if env is None else env, **{**OPTIONS, **defaults, **options})


# --- the mask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, [2]),  # the likeliest is always in
        (0.45, [2]),
        (0.55, [2, 0]),
        (0.75, [2, 0]),
        (0.85, [2, 0, 3]),
        (0.97, [2, 0, 3, 1]),
        (1.0, [2, 0, 3, 1]),
    ],
)
def test_top_p_by_hand(top_p, kept):
    """Probabilities .5, .3, .15 and .05 of tokens 2, 0, 3 and 1; a fifth has none."""
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15, 0.0]], dtype=torch.float64).log()
    mask = top_p_mask(logits, top_p)
    assert sorted(kept) == mask[0].nonzero().squeeze(-1).tolist()
    # A smaller set would not do, and a row does not depend on its neighbours or its scale.
    rows = torch.cat([logits + 5, -logits.clamp(min=-9), logits])
    assert torch.equal(top_p_mask(rows, top_p)[[0, 2]], mask.repeat(2, 1))


def test_in_bf16_the_lagged_policy_is_cast_once_a_rollout_and_says_the_same():
    lagged = make_policy(dtype=torch.float32, precision="bf16")
    both = TopPDecoder(make_policy(dtype=torch.float32, precision="bf16"), 2, 20, lagged=lagged, top_p=0.5)
    plain = Decoder(lagged, 2, 20)

    def said():
        with lagged.autocast():  # as long as a rollout: what it casts itself, it keeps
            for decoder in (both, plain):
                decoder.clear()
                decoder.start([0, 1], [torch.tensor([2, 3, 4]), torch.tensor([5])])
            return both.lagged.step()[0], plain.step()[0]

    with torch.no_grad():
        cast, own = said()
        torch.testing.assert_close(cast, own, rtol=0, atol=0.02)
        lagged.model.transformer.h[0].mlp.c_proj.weight.mul_(3)  # it caught up
        again, changed = said()
        torch.testing.assert_close(again, changed, rtol=0, atol=0.05)
        assert float((changed - own).abs().max()) > 0.2


def test_the_set_is_the_smallest_that_reaches_top_p():
    logits = 2 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(-1)
    mask = top_p_mask(logits, 0.8)
    assert (torch.where(mask, p, 0).sum(-1) >= 0.8).all()
    least = torch.where(mask, p, torch.inf).min(-1).values
    assert (torch.where(mask, p, 0).sum(-1) - least < 0.8).all()
    assert (torch.where(mask, 0, p).max(-1).values <= least).all()


def test_a_top_p_of_1_keeps_every_token_of_any_probability():
    """Summed from the likely end, rounding would reach 1 before the rare tokens: a ban for ever on any of them."""
    logits = 3 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    assert top_p_mask(logits, 1.0).all()
    p = logits.softmax(-1).sort(descending=True).values
    assert (p.cumsum(-1) - p >= 1).any()  # must fail: the sum from the other end


# --- sampling ---------------------------------------------------------------------------------------------


def inside(agent, rollout):
    """For each action, whether it is among the lagged policy's top-p, from the plain model."""
    found = []
    for row, length in enumerate(rollout.lengths_B.tolist()):
        start = int(rollout.prompt_lengths_B[row])
        with torch.no_grad():
            logits = agent.mask_policy.model(input_ids=rollout.input_ids_BS[row : row + 1, : start + length]).logits[0]
        mask = top_p_mask(logits[start - 1 : start + length - 1], agent.config.top_p)
        actions = rollout.input_ids_BS[row, start : start + length]
        assert torch.equal(rollout.allowed_BTV[row, :length], mask)
        found += mask[range(length), actions].tolist()
    return found


def test_actions_stay_inside_the_lagged_top_p():
    """Also when the policy has moved away from the one that masks; with fewer rows than episodes."""
    agent = make_nlpo(mask_refresh_rollouts=100).learn(150)
    assert largest_gap(weights(agent.policy), weights(agent.mask_policy)) > 1e-2
    rollout = agent.collector.collect(40)
    assert all(inside(agent, rollout))
    agent.refresh_mask()
    with pytest.raises(AssertionError):  # must fail: the top-p of today's policy
        inside(agent, rollout)


def test_plain_sampling_goes_outside():
    agent = make_nlpo()
    agent.collector.make_decoder = PPO(gpt2_config(), make_env(), **OPTIONS).collector.make_decoder
    rollout = agent.collector.collect(40)
    with pytest.raises(AssertionError):
        inside(agent, rollout)


def climbing(prompt, actions, tokenizer):
    return [1, 3, 6] if len(actions) % 2 else [2, 5]


def test_the_environments_own_mask_comes_first():
    """The top-p of what is allowed: never empty, and never more than either."""
    env = make_env(mdp=make_mdp(allowed_tokens=climbing))
    agent = make_nlpo(env, top_p=0.6)
    rollout = agent.collector.collect(40)
    sizes = []
    for row, completion in enumerate(rollout.completions):
        for step in range(len(completion.token_ids)):
            allowed = set(rollout.allowed_BTV[row, step].nonzero().squeeze(-1).tolist())
            assert allowed <= set(climbing(None, completion.token_ids[:step], None))
            assert completion.token_ids[step] in allowed
            sizes.append(len(allowed))
    assert set(sizes) >= {1, 2}
    agent.learn(60)  # and it learns under both


def test_nothing_is_masked_at_evaluation():
    agent = make_nlpo(top_p=0.05)  # greedy, where it acts
    texts = {sample.completion for sample in evaluate(agent, make_mdp(), samples_per_prompt=20).samples}
    played = agent.collector.collect(120, samples_per_prompt=20)
    assert len({(info["prompt"], info["text"]) for info in played.infos}) == 6  # one text a prompt
    assert len(texts) > 60


# --- the update -------------------------------------------------------------------------------------------


def test_the_expected_update_is_the_masked_policys_gradient():
    """Enumerated under the mask of the lagged policy: the completions that are left, and their renormalised p."""
    tree = Tree()
    agent = tree.agent(NLPO, top_p=0.75, gae_lambda=1.0, value_coef=0.0)
    agent.mask_policy.load_state_dict(tree.reference.state_dict())  # lagging behind
    tree.mask_BTV = torch.ones(len(COMPLETIONS), DEPTH, 3, dtype=torch.bool)
    for row, tokens in enumerate(COMPLETIONS):
        for t in range(len(tokens)):
            with torch.no_grad():
                logits = tree.reference.model(input_ids=tree.input_ids[row : row + 1, : 2 + t]).logits[:, -1, :3]
            tree.mask_BTV[row, t] = top_p_mask(logits / tree.reference.temperature, 0.75)[0]
    rows = tree.probabilities().detach().nonzero().squeeze(-1)
    p = tree.probabilities().detach()[rows]
    assert 5 < len(rows) < 31
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    played = agent.collector.collect(200)
    assert {completion.token_ids for completion in played.completions} <= {COMPLETIONS[row] for row in rows.tolist()}
    exact = tree.gradient((tree.log_probs()[rows].sum(-1).exp() * tree.scores[rows]).sum())
    batch = agent.prepare(tree.rollout(rows))
    assert largest_gap(weighted_ascent(agent, batch, p), exact) < 1e-12
    unmasked = agent.prepare(tree.rollout(rows).replace(allowed_BTV=None))
    assert largest_gap(weighted_ascent(agent, unmasked, p), exact) > 1e-3  # must fail


def test_top_p_of_1_is_ppo():
    agents = [make_nlpo(top_p=1.0, kl_coef_per_sequence=0.1), PPO(gpt2_config(), make_env(), **OPTIONS)]
    agents[1].config.kl_coef_per_sequence = 0.1
    agents[1].kl_controller.coef = 0.1
    for agent in agents:
        agent.learn(150)
    assert agents[0]._n_updates == agents[1]._n_updates > 4
    assert largest_gap(weights(agents[0].policy), weights(agents[1].policy)) == 0  # bit for bit
    less = make_nlpo(kl_coef_per_sequence=0.1).learn(150)
    assert largest_gap(weights(less.policy), weights(agents[1].policy)) > 1e-3


# --- the refresh ------------------------------------------------------------------------------------------


class Lag(BaseCallback):
    """At the start of every rollout: how far the mask lags behind the policy."""

    def __init__(self):
        super().__init__()
        self.gaps = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        self.gaps.append(largest_gap(weights(self.model.policy), weights(self.model.mask_policy)))


def lags(agent, rollouts):
    lag = Lag()
    while len(lag.gaps) < rollouts:
        agent.learn(1, callback=lag, reset_num_timesteps=False)
    return [gap > 0 for gap in lag.gaps]


def test_the_mask_is_refreshed():
    """Every third update, bit for bit, and not before."""
    assert lags(make_nlpo(), 8) == [False, True, True, False, True, True, False, True]


def test_a_mask_that_is_never_refreshed_is_seen(monkeypatch):
    """Must fail: as in the implementation by the authors of the algorithm."""
    monkeypatch.setattr(NLPO, "refresh_mask", lambda self: None)
    assert lags(make_nlpo(), 5) == [False, True, True, True, True]


def test_a_refresh_lets_other_actions_through():
    agent = make_nlpo(mask_refresh_rollouts=100, top_p=0.5).learn(1)
    assert not any(parameter.requires_grad for parameter in agent.mask_policy.parameters())
    head = agent.policy.model.get_output_embeddings().weight
    with torch.no_grad():
        head *= -1  # the opposite taste
    before = agent.collector.collect(40).allowed_BTV
    agent.refresh_mask()
    rollout = agent.collector.collect(40)
    assert all(inside(agent, rollout))
    assert not torch.equal(rollout.allowed_BTV[:, 0], before[:, 0])


def test_a_new_reference_is_a_new_mask():
    agent = make_nlpo().learn(1)
    assert largest_gap(weights(agent.policy), weights(agent.mask_policy)) > 0
    agent.refresh_reference()
    assert largest_gap(weights(agent.policy), weights(agent.mask_policy)) == 0
    assert largest_gap(weights(agent.policy), weights(agent.reference)) == 0


def test_saving_keeps_the_lagged_policy(tmp_path):
    agent = make_nlpo()
    assert lags(agent, 5)[-1]  # one update after a refresh
    agent.save(tmp_path / "agent.zip")
    loaded = NLPO.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    assert largest_gap(weights(loaded.mask_policy), weights(agent.mask_policy)) == 0
    assert largest_gap(weights(loaded.mask_policy), weights(loaded.policy)) > 0
    assert not any(parameter.requires_grad for parameter in loaded.mask_policy.parameters())
    assert lags(loaded, 4) == lags(agent, 4) == [True, False, True, True]  # five updates done, the sixth refreshes
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0


def test_the_number_of_allowed_tokens_is_logged():
    agent = make_nlpo(top_p=0.5)
    agent.set_logger(configure(None, []))
    agent.learn(1, log_interval=10**9)
    assert 1 <= agent.logger.name_to_value["policy/allowed_tokens"] < 5
    everything = make_nlpo(top_p=1.0)
    everything.set_logger(configure(None, []))
    everything.learn(1, log_interval=10**9)
    assert everything.logger.name_to_value["policy/allowed_tokens"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must lie in \(0, 1\]"),
        ({"mask_refresh_rollouts": 0}, "mask_refresh_rollouts must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NLPOConfig(**options)
