"""DQN: its update is the equations, it reaches the optimum of an enumerated tree, it resumes, and it learns."""

import pytest
import torch
from stable_baselines3.common.logger import configure

from agents.dqn import DQN, DQNConfig, epsilon_greedy
from agents.logged import logged_episodes
from agents.q_policy import spread
from agents.trajectories import Trajectories
from tests.agents import test_learning
from tests.agents.conftest import PROMPTS, gpt2_config, gradients, largest_gap, letters, make_env, make_mdp, weights
from tests.agents.test_losses import COMPLETIONS, DEPTH
from tests.agents.test_q_policy import VOCAB, make_q_policy, not_after_itself
from tests.agents.test_q_targets import GAMMA, STATES, Tree


def make_dqn(env=None, **options):
    """One update a handful of milliseconds."""
    defaults = {
        "seed": 3,
        "device": "cpu",
        "episodes_per_rollout": 12,
        "batch_episodes": 16,
        "learning_starts": 12,
        "updates_per_rollout": 2,
        "replay_episodes": 50,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "constant",
    }
    return DQN(gpt2_config(), make_env() if env is None else env, **{**defaults, **options})


def collected(agent, **kwargs):
    agent.set_logger(configure(None, []))
    return agent.collector.collect(12, act=epsilon_greedy(0.5, 12, agent.collector.generator), **kwargs)


# --- the update -------------------------------------------------------------------------------------------


def plain_loss(agent, episodes):
    """The whole loss, a prefix at a time: double selection, the lowest of the slow heads, Q(λ) by recursion."""
    policy, config = agent.policy, agent.config

    def q_of(network, ids):
        output = network.model(torch.tensor([ids]), output_hidden_states=True)
        hidden = output.hidden_states[-1][0, -1]
        advantages = network.q_heads.advantage(hidden).reshape(config.q_heads, -1)
        return network.q_heads.value(hidden)[:, None] + advantages - advantages.mean(-1, keepdim=True)

    terms = []
    for row, length in enumerate(episodes.lengths_B.tolist()):
        prompt = int(episodes.prompt_lengths_B[row])
        ids = episodes.input_ids_BS[row, : prompt + length].tolist()
        after, value = 0.0, float(episodes.bootstrap_values_B[row])
        for t in reversed(range(length)):
            mixed = value if t == length - 1 else (1 - config.q_lambda) * value + config.q_lambda * after
            target = float(episodes.rewards_BT[row, t]) + config.gamma * mixed
            q = q_of(policy, ids[: prompt + t])
            for error in (q[:, ids[prompt + t]] - target).unbind():
                small = error.abs() <= config.huber_delta
                terms.append(0.5 * error**2 if small else config.huber_delta * (error.abs() - 0.5 * config.huber_delta))
            with torch.no_grad():
                mean = q.mean(0).clone()
                if episodes.allowed_BTV is not None:
                    mean[~episodes.allowed_BTV[row, t]] = -torch.inf
                value = float(q_of(policy.target, ids[: prompt + t])[:, mean.argmax()].min())
            after = target
    return torch.stack(terms).sum() / episodes.num_tokens


@pytest.mark.parametrize(("heads", "masked"), [(1, False), (1, True), (2, False), (2, True)])
def test_one_update_is_its_equations(heads, masked):
    env = make_env(mdp=make_mdp(allowed_tokens=not_after_itself if masked else None))
    agent = make_dqn(env, gamma=0.9, q_lambda=0.7, huber_delta=0.3, q_heads=heads)
    episodes = collected(agent)
    assert (episodes.allowed_BTV is not None) == masked
    agent.policy = make_q_policy(num_heads=heads)
    doubled = episodes.replace(
        rewards_BT=episodes.rewards_BT.double(), bootstrap_values_B=torch.linspace(-1, 1, 12, dtype=torch.float64)
    )
    found = []
    for loss in (agent.losses(doubled, doubled.num_tokens)[0], plain_loss(agent, doubled)):
        agent.policy.zero_grad(set_to_none=True)
        loss.backward()
        found.append((float(loss.detach()), gradients(agent.policy)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-10)
    assert largest_gap(found[0][1], found[1][1]) < 1e-9
    assert max(float(g.abs().max()) for g in found[0][1].values()) > 1e-2


# --- value iteration on a tree of three tokens, four deep -------------------------------------------------


def fitted_q_iteration(sweeps, *, heads=1, follow=True):
    """The agent's own targets of all 31 trajectories; after each sweep its heads are fitted to them exactly.

    The last layer of 32 can represent any Q of 15 prefixes, so the fit is a linear system.
    """
    tree = Tree()
    env = make_env(mdp=make_mdp(words="a", max_new_tokens=DEPTH, prompts=["a a"]))
    agent = DQN(gpt2_config(3), env, gamma=GAMMA, q_lambda=0.0, q_heads=heads, device="cpu", seed=0)
    policy = agent.policy = make_q_policy(vocab_size=3, num_heads=heads)
    prompt = torch.tensor([2, 1])
    input_ids = torch.zeros(len(COMPLETIONS), 2 + DEPTH, dtype=torch.long)
    for row, tokens in enumerate(COMPLETIONS):
        input_ids[row, : 2 + len(tokens)] = torch.cat([prompt, torch.tensor(tokens)])
    zeros = torch.zeros_like(tree.rewards)
    episodes = Trajectories(
        input_ids_BS=input_ids,
        prompt_lengths_B=torch.full((len(COMPLETIONS),), 2),
        action_mask_BT=tree.mask,
        log_probs_BT=zeros,
        values_BT=zeros,
        rewards_BT=tree.rewards,
        bootstrap_values_B=zeros[:, 0],
        prompt_groups_B=torch.zeros(len(COMPLETIONS), dtype=torch.long),
        infos=({},) * len(COMPLETIONS),
    )
    with torch.no_grad():
        for parameter in (*policy.q_heads.parameters(), *policy.target.q_heads.parameters()):
            parameter.zero_()
        policy.target.model.load_state_dict(policy.model.state_dict())
        hidden, _ = policy.read(episodes)
        where = tree.places[0][tree.mask], tree.places[1][tree.mask]
        states = torch.zeros(len(STATES), 33, dtype=torch.float64)
        states[where[0]] = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=-1)
        for _ in range(sweeps):
            table = torch.zeros(len(STATES), 3, dtype=torch.float64)
            table[where] = agent.targets(episodes, hidden)[tree.mask]
            fitted = torch.linalg.lstsq(states, torch.cat([table, table.mean(-1, keepdim=True)], dim=-1)).solution.T
            policy.q_heads.advantage.weight.copy_(fitted[:3, :32].repeat(heads, 1))
            policy.q_heads.advantage.bias.copy_(fitted[:3, 32].repeat(heads))
            policy.q_heads.value.weight.copy_(fitted[3:, :32].expand(heads, -1))
            policy.q_heads.value.bias.copy_(fitted[3:, 32].expand(heads))
            if follow:
                policy.update_target(1.0)
        q = policy.q_heads.mean(hidden)
    found = torch.zeros(len(STATES), 3, dtype=torch.float64)
    found[where[0]] = q
    return float((found - tree.exact()).abs().max())


@pytest.mark.parametrize("heads", [1, 2])
def test_the_targets_reach_the_optimal_q_of_the_tree(heads):
    assert fitted_q_iteration(DEPTH, heads=heads) < 1e-6


def test_too_few_sweeps_or_a_slow_copy_that_stays_are_seen():
    """Must fail: the reward of the last token has not come up to the first."""
    assert fitted_q_iteration(DEPTH - 1) > 1e-2
    assert fitted_q_iteration(10, follow=False) > 1e-2


# --- exploration ------------------------------------------------------------------------------------------


def rule(mean, episodes=400):
    return epsilon_greedy(mean, episodes, torch.Generator().manual_seed(0))


def test_epsilon_greedy_never_takes_a_forbidden_action():
    logits = torch.randn(400, VOCAB, generator=torch.Generator().manual_seed(1))
    logits[:, ::2] = -torch.inf
    actions = torch.stack([rule(1.0)(logits, torch.arange(400).numpy()) for _ in range(3)])
    assert (actions % 2 == 1).all()
    assert set(actions.flatten().tolist()) == {1, 3, 5, 7}


def test_epsilon_is_an_episodes_own():
    """ε ~ U(0, 1) at a mean of ½: over many steps each episode is greedy at its own rate."""
    act, episodes = rule(0.5), torch.arange(400).numpy()
    logits = torch.zeros(400, VOCAB).index_fill(1, torch.tensor([5]), 1.0)
    rates = torch.stack([act(logits, episodes) == 5 for _ in range(200)]).float().mean(0)
    epsilons = (1 - rates) / (1 - 1 / VOCAB)  # a random action may be the greedy one
    assert float(epsilons.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(epsilons.std()) == pytest.approx(12**-0.5, abs=0.04)  # one ε for all of them: .035
    few = act(logits[:2], torch.tensor([7, 300]).numpy())
    assert few.shape == (2,)


def test_without_epsilon_it_is_greedy():
    logits = torch.randn(400, VOCAB, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rule(0.0)(logits, torch.arange(400).numpy()), logits.argmax(-1))


def test_epsilon_falls_over_its_part_of_the_run():
    agent = make_dqn(epsilon_start=0.6, epsilon_end=0.1, epsilon_fraction=0.5)
    for remaining, expected in ((1.0, 0.6), (0.75, 0.35), (0.5, 0.1), (0.0, 0.1)):
        agent._current_progress_remaining = remaining
        assert agent.epsilon == pytest.approx(expected)
    assert make_dqn(epsilon_end=0.1, epsilon_fraction=0.0).epsilon == pytest.approx(0.1)


# --- what it learns from ----------------------------------------------------------------------------------


def drawn_batches(agent, tokens=200):
    """What `update` is given over a few rollouts."""
    batches, update = [], agent.update

    def keep(batch):
        batches.append(batch)
        return update(batch)

    agent.update = keep
    agent.learn(tokens)
    return batches


def test_every_update_sees_successes_again():
    agent = make_dqn(updates_per_rollout=3)
    batches = drawn_batches(agent)
    best = torch.quantile(torch.cat([batch.returns_B for batch in batches[-3:]]), 0.9)
    assert all((batch.returns_B >= best).float().mean() > 0.2 for batch in batches[-3:])
    assert len(batches) == 3 * agent._iteration
    assert agent._n_updates == len(batches)


def test_it_waits_for_enough_episodes():
    agent = make_dqn(learning_starts=36)
    drawn_batches(agent, 1)
    assert (agent._n_updates, len(agent.replay)) == (0, 12)
    drawn_batches(agent, 1000)
    assert agent._n_updates == 2 * (agent._iteration - 2)


def test_demonstrations_are_part_of_every_batch_with_shaped_rewards():
    mdp = make_mdp()
    agent = make_dqn(make_env(mdp=mdp), demonstration_share=0.25, reward_scale=3.0)
    agent.set_demonstrations(logged_episodes(mdp, PROMPTS, ["f f f f f f"] * len(PROMPTS)))
    for batch in drawn_batches(agent):
        rows = [
            row
            for row, prompt in enumerate(batch.prompt_lengths_B.tolist())
            if batch.input_ids_BS[row, prompt : prompt + 6].tolist() == [7] * 6
        ]
        assert len(rows) >= 4
        assert batch.returns_B[rows].numpy() == pytest.approx(3 * letters(["f f f f f f"], None)[0])


# --- a citizen --------------------------------------------------------------------------------------------


def test_a_loaded_agent_makes_the_same_next_update(tmp_path):
    mdp = make_mdp()
    agent = make_dqn(make_env(mdp=mdp), q_heads=2)
    agent.set_demonstrations(logged_episodes(mdp, PROMPTS, ["a a a"] * len(PROMPTS)))
    agent.learn(300)
    agent.save(tmp_path / "agent.zip")
    loaded = DQN.load(tmp_path / "agent.zip", env=make_env(mdp=make_mdp()), device="cpu")
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    assert len(loaded.replay) == len(agent.replay) == 50
    for one in (agent, loaded):
        one.learn(60, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    assert loaded._n_updates == agent._n_updates


def test_a_forgotten_replay_is_seen(tmp_path):
    """Must fail: with the last rollout alone the next update is another one."""
    agent = make_dqn().learn(300)
    agent.save(tmp_path / "agent.zip")
    loaded = DQN.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    loaded.replay.load_state_dict({"rows": {}, "next": 0, "demonstrations": None})
    for one in (agent, loaded):
        one.learn(1, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) > 1e-5


def test_an_agent_loaded_without_an_environment_writes(tmp_path):
    agent = make_dqn().learn(200)
    agent.save(tmp_path / "agent.zip")
    assert DQN.load(tmp_path / "agent.zip").generate(PROMPTS, greedy=True) == agent.generate(PROMPTS, greedy=True)


def test_a_seeded_run_repeats_bit_for_bit():
    first, second, other = (make_dqn(seed=seed).learn(300) for seed in (3, 3, 4))
    assert largest_gap(weights(first.policy), weights(second.policy)) == 0
    assert largest_gap(weights(first.policy), weights(other.policy)) > 1e-3


def test_what_is_logged():
    agent = make_dqn()
    agent.set_logger(configure(None, []))
    agent.learn(400, log_interval=10**9)
    logged = agent.logger.name_to_value
    names = {"loss/td", "q/mean", "q/target_mean", "exploration/epsilon", "replay/episodes", "replay/successes"}
    assert names | {"policy/grad_norm", "policy/optimiser_steps", "reward", "train/learning_rate"} <= set(logged)
    assert logged["replay/episodes"] == 50
    assert 0 < logged["replay/successes"] <= 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q_lambda": 1.5}, r"q_lambda must lie in \[0, 1\], got 1.5"),
        ({"success_share": -0.1}, "success_share must lie in"),
        ({"updates_per_rollout": 0}, "updates_per_rollout must be at least 1"),
        ({"learning_starts": 100, "replay_episodes": 50}, "never reached: the replay holds 50"),
        ({"target_tau": 0.0}, r"target_tau must lie in \(0, 1\]"),
        ({"huber_delta": 0.0}, "huber_delta must be above 0, or none"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DQNConfig(**options)


# --- it learns --------------------------------------------------------------------------------------------


def make_learner(kind=DQN, **options):
    env = make_env(mdp=test_learning.make_copy_mdp("train"), num_envs=32)
    return kind(gpt2_config(spread=0.1), env, seed=0, device="cpu", **{"learning_rate": 3e-3, **options})


def test_dqn_learns_to_copy():
    agent = make_learner()
    assert test_learning.mean_reward(agent, "test", greedy=True) < 0.4
    agent.learn(25_000)
    rewards = {
        (split, greedy): test_learning.mean_reward(agent, split, greedy)
        for split in ("train", "test")
        for greedy in (False, True)
    }
    assert min(rewards.values()) >= test_learning.THRESHOLD, rewards


class Backwards(DQN):
    """DQN with the sign of its targets lost."""

    def targets(self, part, hidden_NH):
        return -super().targets(part, hidden_NH)


class Unmoved(DQN):
    """One-step DQN whose targets bootstrap from nothing."""

    def targets(self, part, hidden_NH):
        return spread(part.rewards_BT[part.action_mask_BT], part.action_mask_BT)


def test_what_is_broken_does_not_learn():
    """Must fail: the same short run, in which DQN comes half of the way, without what it learns by."""
    broken = {
        "sign": (Backwards, {}),
        "no bootstrapping": (Unmoved, {}),
        "no exploration": (DQN, {"epsilon_start": 0.0, "epsilon_end": 0.0}),
    }
    rewards = {}
    for name, (kind, options) in {"whole": (DQN, {}), **broken}.items():
        agent = make_learner(kind, **options)
        agent.learn(6_000)
        rewards[name] = test_learning.mean_reward(agent, "train", greedy=True)
    assert rewards["whole"] > 0.5, rewards
    assert max(rewards[name] for name in broken) < 0.35, rewards
