"""KL-regularised DQN: its update is the equations, it reaches the soft optimum of an enumerated tree, it resumes."""

import pytest
import torch
from stable_baselines3.common.logger import configure
from transformers import AutoModelForCausalLM

from agents.dqn import DQN, DQNConfig
from agents.evaluation import evaluate
from agents.q_policy import PolicyWithTarget
from agents.q_targets import soft_q_lambda
from agents.trajectories import Trajectories
from tests.agents import tree as world
from tests.agents.conftest import PROMPTS, gpt2_config, gradients, largest_gap, make_env, make_mdp, weights
from tests.agents.test_dqn import make_dqn
from tests.agents.test_q_policy import not_after_itself
from tests.agents.test_q_targets import BETA, GAMMA, STATES, Tree, soft_best, soft_value

SOFT = {"kl_coef_per_sequence": BETA}


def make_soft(env=None, **options):
    return make_dqn(env, **{**SOFT, **options})


def in_float64(agent, seed=0):
    """Every weight far from its initial value and from its copies', so that mistakes show."""
    for number, part in enumerate((agent.policy, agent.reference)):
        part.double()
        generator = torch.Generator().manual_seed(seed + number)
        with torch.no_grad():
            for parameter in part.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return agent


# --- the update -------------------------------------------------------------------------------------------


def plain_loss(agent, episodes):
    """The whole loss, a prefix at a time."""
    policy, config = agent.policy, agent.config

    def read(network, row, ids, t):
        output = network.model(torch.tensor([ids]), output_hidden_states=True)
        logits = output.logits[0, -1] / config.temperature
        if episodes.allowed_BTV is not None:
            logits = logits.masked_fill(~episodes.allowed_BTV[row, t], -torch.inf)
        return logits.log_softmax(-1), network.value_head(output.hidden_states[-1][0, -1])[0]

    terms = []
    for row, length in enumerate(episodes.lengths_B.tolist()):
        prompt = int(episodes.prompt_lengths_B[row])
        ids = episodes.input_ids_BS[row, : prompt + length].tolist()
        after = value = float(episodes.bootstrap_values_B[row])
        for t in reversed(range(length)):
            prefix, action = ids[: prompt + t], ids[prompt + t]
            log_probs, own_value = read(policy, row, prefix, t)
            with torch.no_grad():
                log_prior = read(agent.reference, row, prefix, t)[0][action]
                slow, slow_value = read(policy.target, row, prefix, t)
            target = float(episodes.rewards_BT[row, t])
            target += config.gamma * ((1 - config.q_lambda) * value + config.q_lambda * after)
            error = own_value + BETA * (log_probs[action] - log_prior) - target
            terms.append(0.5 * error**2)
            after, value = target - BETA * float(slow[action] - log_prior), float(slow_value)
    return torch.stack(terms).sum() / episodes.num_tokens


@pytest.mark.parametrize("masked", [False, True])
def test_one_update_is_its_equations(masked):
    env = make_env(mdp=make_mdp(allowed_tokens=not_after_itself if masked else None))
    agent = in_float64(make_soft(env, gamma=0.9, q_lambda=0.7, huber_delta=None, temperature=1.5))
    episodes = agent.collector.collect(12)
    assert (episodes.allowed_BTV is not None) == masked
    bootstrap = torch.linspace(-1, 1, 12, dtype=torch.float64)
    episodes = episodes.replace(rewards_BT=episodes.rewards_BT.double(), bootstrap_values_B=bootstrap)
    found = []
    for loss in (agent.losses(episodes, episodes.num_tokens)[0], plain_loss(agent, episodes)):
        agent.policy.zero_grad(set_to_none=True)
        loss.backward()
        found.append((float(loss.detach()), gradients(agent.policy)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-10)
    assert largest_gap(found[0][1], found[1][1]) < 1e-9
    assert max(float(g.abs().max()) for g in found[0][1].values()) > 1e-2


# --- soft value iteration on a tree of three tokens, four deep --------------------------------------------


class Uncharged(DQN):
    """What follows an action is not charged for its KL."""

    def soft_targets(self, part, prior_BT):
        log_probs_BT, *_ = self.policy.target.score(part)
        return super().soft_targets(part, log_probs_BT)


def fitted_soft_iteration(sweeps, *, kind=DQN, lam=0.0, follow=True):
    """The agent's own targets of all 31 trajectories; after each sweep its heads are fitted to them exactly.

    The last layer of 32 can represent any V and any log π of 15 prefixes, so the fit is a linear system.

    Returns:
        The agent, and the largest gap between its Q and the exact one.
    """
    tree = Tree()
    env = make_env(mdp=make_mdp(words="a", max_new_tokens=world.DEPTH, prompts=["a a"]))
    config = gpt2_config(3)
    config.tie_word_embeddings = False
    agent = kind(config, env, gamma=GAMMA, q_lambda=lam, device="cpu", seed=0, **SOFT)
    policy, count = in_float64(agent).policy, len(world.COMPLETIONS)
    input_ids = torch.zeros(count, 2 + world.DEPTH, dtype=torch.long)
    for row, tokens in enumerate(world.COMPLETIONS):
        input_ids[row, : 2 + len(tokens)] = torch.tensor([2, 1, *tokens])
    zeros = torch.zeros_like(tree.rewards)
    episodes = Trajectories(
        input_ids_BS=input_ids,
        prompt_lengths_B=torch.full((count,), 2),
        action_mask_BT=tree.mask,
        log_probs_BT=zeros,
        values_BT=zeros,
        rewards_BT=tree.rewards,
        bootstrap_values_B=zeros[:, 0],
        prompt_groups_B=torch.arange(count),
        infos=({},) * count,
    )
    where = tree.places[0][tree.mask], tree.places[1][tree.mask]

    def features(network):
        """Hidden states and log-probabilities of the 15 prefixes."""
        at = network.places(input_ids, episodes.prompt_lengths_B, tree.mask, None)
        hidden, logits = network.features(at.input_ids, at.position_ids, at.select_N, attention_mask=at.attention_mask)
        both = torch.zeros(len(STATES), 32, dtype=torch.float64), torch.zeros(len(STATES), 3, dtype=torch.float64)
        both[0][where[0]], both[1][where[0]] = hidden, logits.log_softmax(-1)
        return both

    with torch.no_grad():
        policy.target.model.load_state_dict(policy.model.state_dict())
        states, log_prior = features(policy)[0], features(agent.reference)[1]
        q = torch.zeros(len(STATES), 3, dtype=torch.float64)
        for sweep in range(sweeps + 1):
            value = soft_value(q, log_prior)
            log_policy = log_prior + (q - value[:, None]) / BETA
            fitted = torch.linalg.lstsq(states, torch.cat([log_policy, value[:, None]], dim=-1)).solution.T
            policy.model.lm_head.weight.copy_(fitted[:3])
            policy.value_head.weight.copy_(fitted[3:])
            policy.value_head.bias.zero_()
            if follow or sweep == 0:
                policy.update_target(1.0)
            own, _ = agent._soft(episodes)
            q = torch.zeros_like(q)
            q[where] = own[0][tree.mask]
            if sweep == sweeps:
                return agent, float((q - soft_best(tree, log_prior)).abs().max())
            q[where] = agent._soft(episodes)[1][tree.mask]


@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_the_targets_reach_the_soft_optimum_of_the_tree(lam):
    assert fitted_soft_iteration(world.DEPTH, lam=lam)[1] < 1e-6


def test_too_few_sweeps_a_slow_copy_that_stays_or_a_kl_left_out_are_seen():
    """Must fail: the end has not come up to the beginning, or steps cost nothing."""
    assert fitted_soft_iteration(world.DEPTH - 1)[1] > 1e-2
    assert fitted_soft_iteration(10, follow=False)[1] > 1e-2
    assert fitted_soft_iteration(10, kind=Uncharged, lam=0.8)[1] > 1e-2


# --- it learns --------------------------------------------------------------------------------------------


class Free(DQN):
    """Soft Q-learning whose steps cost nothing: the KL is in Q, but not in what it is fitted to."""

    def soft_targets(self, part, prior_BT):
        log_probs_BT, *_ = self.policy.target.score(part)
        return soft_q_lambda(
            part.rewards_BT,
            torch.zeros_like(log_probs_BT),
            torch.zeros_like(log_probs_BT),
            part.action_mask_BT,
            kl_coef=BETA,
            gamma=1.0,
            lam=1.0,
        )


def share_of_optimum(kind, beta=0.5, **options):
    """``J(π) = E_π[r] − β KL(π‖π_0)`` over all 31 completions after learning: 0 that of π_0, 1 the most there is."""
    tree = world.Tree()
    agent = kind(
        gpt2_config(3, layers=1),
        make_env(mdp=tree.mdp, num_envs=32),
        seed=0,
        device="cpu",
        kl_coef_per_sequence=beta,
        success_share=0.0,
        episodes_per_rollout=32,
        learning_starts=32,
        learning_rate=5e-3,
        target_tau=0.1,
        **options,
    )
    tree.policy = tree.reference = agent.policy
    before = tree.log_probs().detach().double().sum(-1)
    floor, best = float(before.exp() @ tree.scores), float(beta * (before + tree.scores / beta).logsumexp(-1))
    agent.learn(4_000)
    after = tree.log_probs().detach().double().sum(-1)
    return (float(after.exp() @ (tree.scores - beta * (after - before))) - floor) / (best - floor)


def test_it_learns_the_regularised_optimum():
    assert share_of_optimum(DQN) > 0.95
    assert share_of_optimum(Free) < 0.88  # must fail


# --- a citizen --------------------------------------------------------------------------------------------


def learned(**options):
    agent = make_soft(**options)
    agent.set_logger(configure(None, []))
    return agent.learn(300, log_interval=10**9)


def test_it_acts_by_drawing_from_its_policy():
    agent = make_soft()
    assert agent._action_rule(12) is None
    assert type(agent.policy) is PolicyWithTarget  # no Q heads: what it learns is a language model


def test_the_reference_is_the_policy_as_it_was(tmp_path):
    agent = make_soft()
    start = weights(agent.policy.model)
    agent.learn(300)
    assert largest_gap(weights(agent.reference.model), start) == 0
    assert agent.reference.target is None
    assert largest_gap(weights(agent.policy.model), start) > 1e-3
    agent.refresh_reference()
    assert largest_gap(weights(agent.reference.model), weights(agent.policy.model)) == 0
    agent.policy.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert largest_gap(weights(saved), weights(agent.policy.model)) == 0


def test_the_kl_that_is_logged_and_evaluated():
    agent = make_soft()
    assert evaluate(agent, make_mdp(), samples_per_prompt=8).kl_per_sequence == pytest.approx(0, abs=1e-4)
    agent = learned(learning_rate=1e-2)
    logged = agent.logger.name_to_value
    assert logged["kl/per_sequence"] > 0.1
    assert logged["kl/per_token"] == pytest.approx(logged["kl/per_sequence"] / logged["completions/mean_length"])
    assert "exploration/epsilon" not in logged
    found = evaluate(agent, make_mdp(), samples_per_prompt=50)
    played = agent.collector.collect(300)
    ratios = played.log_probs_BT - agent.rescore(agent.reference, played)[0]
    assert found.kl_per_sequence == pytest.approx(float(ratios.sum(-1).mean()), rel=0.25)


def test_a_loaded_agent_makes_the_same_next_update(tmp_path):
    agent = learned()
    agent.save(tmp_path / "agent.zip")
    loaded, forgetful = (DQN.load(tmp_path / "agent.zip", env=make_env(), device="cpu") for _ in range(2))
    assert largest_gap(weights(loaded.reference), weights(agent.reference)) == 0
    forgetful.reference.load_state_dict({**weights(forgetful.reference), **weights(forgetful.policy.target)})
    for one in (agent, loaded, forgetful):
        one.learn(60, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    assert largest_gap(weights(forgetful.policy), weights(agent.policy)) > 1e-6  # must fail: another reference
    assert DQN.load(tmp_path / "agent.zip").generate(PROMPTS, greedy=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coef_per_sequence": -0.1}, "would pay the policy for leaving the reference"),
        ({"kl_coef_per_sequence": 0.1, "q_heads": 2}, "leave q_heads at 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DQNConfig(**options)
