"""Implicit Q-learning: its losses by hand, and stitching halves of logged episodes that cloning cannot."""

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from transformers import GPT2Config

from agents.logged import logged_episodes
from agents.offline import ILQL, ILQLConfig
from agents.q_policy import actions_of
from agents.rollout import Collector
from tests.agents.conftest import (
    PROMPTS,
    gpt2_config,
    gradients,
    largest_gap,
    make_env,
    make_mdp,
    weights,
    word_tokenizer,
)
from tests.agents.test_q_policy import make_q_policy, not_after_itself
from textgen_env import TextMDP, TextTask

LOGGED = ["a b", "c", "a b a", "d e f d e f", "b", "e a"]


def make_ilql(mdp=None, **options):
    mdp = make_mdp() if mdp is None else mdp
    defaults = {
        "data": logged_episodes(mdp, PROMPTS, LOGGED),
        "seed": 3,
        "device": "cpu",
        "episodes_per_rollout": 4,
        "minibatches": 2,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "constant",
    }
    return ILQL(gpt2_config(), make_env(mdp=mdp), **{**defaults, **options})


# --- the losses -------------------------------------------------------------------------------------------


def plain_losses(agent, episodes):
    """Every term of the loss from the model run on one prefix at a time."""
    policy, config = agent.policy, agent.config

    def read(network, ids):
        output = network.model(torch.tensor([ids]), output_hidden_states=True)
        hidden = output.hidden_states[-1][0, -1]
        advantages = network.q_heads.advantage(hidden).reshape(config.q_heads, -1)
        q = network.q_heads.value(hidden)[:, None] + advantages - advantages.mean(-1, keepdim=True)
        return q, network.value_head(hidden)[0], output.logits[0, -1]

    terms = {"loss/td": [], "loss/expectile": [], "loss/cloning": [], "loss/conservative": []}
    for row, length in enumerate(episodes.lengths_B.tolist()):
        prompt = int(episodes.prompt_lengths_B[row])
        ids = episodes.input_ids_BS[row, : prompt + length].tolist()
        states = [read(policy, ids[: prompt + t]) for t in range(length)]
        for t, (q, value, logits) in enumerate(states):
            action = ids[prompt + t]
            last = t == length - 1
            after = episodes.bootstrap_values_B[row] if last else states[t + 1][1].detach()
            target = episodes.rewards_BT[row, t] + config.gamma * after
            terms["loss/td"].append((0.5 * (q[:, action] - target) ** 2).sum())
            slow, _, _ = read(policy.target, ids[: prompt + t])
            error = slow[:, action].min().detach() - value
            weight = config.expectile if error > 0 else 1 - config.expectile
            terms["loss/expectile"].append(weight * error**2)
            if episodes.allowed_BTV is None:
                allowed = torch.ones(len(logits), dtype=torch.bool)
            else:
                allowed = episodes.allowed_BTV[row, t]
            for name, scores in (("loss/cloning", logits), ("loss/conservative", q.mean(0))):
                terms[name].append(scores[allowed].logsumexp(0) - scores[action])
    return {name: torch.stack(values).sum() / episodes.num_tokens for name, values in terms.items()}


@pytest.mark.parametrize("masked", [False, True])
def test_one_update_is_its_equations(masked):
    mdp = make_mdp(allowed_tokens=not_after_itself if masked else None)
    data = logged_episodes(mdp, PROMPTS, LOGGED)
    options = {"gamma": 0.9, "huber_delta": None, "expectile": 0.7, "cloning_coef": 0.3, "conservative_coef": 0.2}
    agent = make_ilql(mdp, data=data, **options)
    agent.policy = make_q_policy(num_heads=2, prior=True)
    episodes = data.replace(
        rewards_BT=data.rewards_BT.double(), bootstrap_values_B=torch.linspace(-1, 1, 6, dtype=torch.float64)
    )
    loss, stats = agent.losses(episodes, episodes.num_tokens)
    loss.backward()
    found = gradients(agent.policy)
    agent.policy.zero_grad(set_to_none=True)
    expected = plain_losses(agent, episodes)
    total = expected["loss/td"] + expected["loss/expectile"]
    (total + 0.3 * expected["loss/cloning"] + 0.2 * expected["loss/conservative"]).backward()
    for name, value in expected.items():
        assert float(stats[name].detach()) == pytest.approx(float(value.detach()), abs=1e-10), name
    assert largest_gap(found, gradients(agent.policy)) < 1e-9
    assert max(float(g.abs().max()) for g in found.values()) > 1e-2


def test_cloning_off_leaves_the_language_model_head_alone():
    agent = make_ilql(cloning_coef=0.0)
    agent.policy = make_q_policy(torch.float32, num_heads=2, prior=True)
    _, stats = agent.losses(agent.data, agent.data.num_tokens)
    assert set(stats) == {"loss/td", "loss/expectile", "q/mean", "q/target_mean", "q/advantage_mean"}


# --- stitching --------------------------------------------------------------------------------------------
#
# Two starts, s and z. From s nobody ever went m, g: most went n, c (.3), the others m, b (0). From z half went m, g (1)
# and half m, b. Cloning goes n, c from s; who knows what m is worth to those who go on well goes m, g.
# The model sees the last word alone (no attention layer), so that the node is its state: that is what paths share.

ENDS = {"m g": 1.0, "n c": 0.3}
LOG = [("s", "m b")] * 30 + [("s", "n c")] * 40 + [("z", "m g")] * 15 + [("z", "m b")] * 15


def reach(completions, **_):
    return [ENDS.get(text, 0.0) for text in completions]


GRAPH = TextMDP(
    TextTask.from_pairs({"train": [("s", None), ("z", None)]}, name="graph"),
    reach,
    word_tokenizer("s z m n g b c"),
    max_new_tokens=2,
)


def learn_graph(log=LOG, **options):
    """The greedy path from each start."""
    config = GPT2Config(vocab_size=9, n_positions=4, n_embd=32, n_layer=0, n_head=4, bos_token_id=None, eos_token_id=1)
    data = logged_episodes(GRAPH, [start for start, _ in log], [path for _, path in log])
    defaults = {"data": data, "seed": 0, "device": "cpu", "learning_rate": 1e-2, "episodes_per_rollout": 100}
    agent = ILQL(config, make_env(mdp=GRAPH, num_envs=2), **{**defaults, **options})
    agent.learn(10_000, log_interval=1_000)
    return dict(zip("sz", agent.generate(["s", "z"], greedy=True), strict=True))


def test_ilql_stitches_what_nobody_did():
    assert not any(start == "s" and reach([path])[0] > 0.3 for start, path in LOG)
    assert learn_graph() == {"s": "m g", "z": "m g"}


def test_cloning_does_not():
    """The same fit without its Qs, on all the log and on what was paid for."""
    assert learn_graph(beta=1e-9) == {"s": "n c", "z": "m b"}
    assert learn_graph([(start, path) for start, path in LOG if reach([path])[0] > 0], beta=1e-9)["s"] == "n c"


@pytest.mark.parametrize("broken", [{"expectile": 0.5}, {"gamma": 0.0}], ids=["mean value", "no bootstrapping"])
def test_without_the_best_of_what_follows_it_does_not_stitch(broken):
    """Must fail: on average m is worth .25, less than the .3 of n."""
    assert learn_graph(**broken) == {"s": "n c", "z": "m g"}


# --- a citizen --------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_drawn_episodes():
    class Count(BaseCallback):
        def __init__(self):
            super().__init__()
            self.tokens = self.dones = 0

        def _on_step(self):
            self.dones += int(self.locals["dones"].sum())
            self.tokens += self.locals["trajectories"].num_tokens
            return self.tokens < 60

    count = Count()
    agent = make_ilql().learn(10_000, callback=count)
    assert agent.num_timesteps == count.tokens
    assert 60 <= count.tokens < 100
    assert agent._episode_num == count.dones
    assert agent._n_updates == 2 * (count.dones // 4 - 1)  # the callback stopped the last one


def test_few_episodes_are_all_drawn():
    agent = make_ilql(episodes_per_rollout=128, minibatches=4).learn(1)
    assert agent.num_timesteps == agent.data.num_tokens
    assert agent._n_updates == 4


def test_a_loaded_agent_makes_the_same_next_update(tmp_path):
    agent = make_ilql().learn(100)
    agent.save(tmp_path / "agent.zip")
    loaded = ILQL.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    with pytest.raises(RuntimeError, match="ILQL learns from logged episodes: give data=, or call set_data"):
        loaded.learn(1, reset_num_timesteps=False)
    loaded.set_data(agent.data)
    for one in (agent, loaded):
        one.learn(50, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) == 0
    assert loaded.generate(PROMPTS, greedy=True) == agent.generate(PROMPTS, greedy=True)


def test_a_forgotten_slow_copy_is_seen(tmp_path):
    """Must fail: fresh from the network it gives other values."""
    agent = make_ilql().learn(100)
    agent.save(tmp_path / "agent.zip")
    loaded = ILQL.load(tmp_path / "agent.zip", env=make_env(), device="cpu")
    loaded.set_data(agent.data)
    loaded.policy.update_target(1.0)
    for one in (agent, loaded):
        one.learn(50, reset_num_timesteps=False)
    assert largest_gap(weights(loaded.policy), weights(agent.policy)) > 1e-6


def test_a_seeded_run_repeats_bit_for_bit():
    first, second, other = (make_ilql(seed=seed).learn(100) for seed in (3, 3, 4))
    assert largest_gap(weights(first.policy), weights(second.policy)) == 0
    assert largest_gap(weights(first.policy), weights(other.policy)) > 1e-3


def test_masks_hold_in_learning_and_in_acting():
    mdp = make_mdp(allowed_tokens=not_after_itself)
    data = logged_episodes(mdp, PROMPTS, ["a b a b a b"] * len(PROMPTS))
    agent = make_ilql(mdp, data=data).learn(300)
    played = Collector(make_env(mdp=mdp), agent.policy, seed=0).collect(40)
    assert played.allowed_BTV is not None
    assert played.allowed_BTV[played.action_mask_BT].gather(-1, actions_of(played)[:, None]).all()


def test_what_is_logged_is_that_of_the_drawn_episodes():
    agent = make_ilql(episodes_per_rollout=6, conservative_coef=0.1)
    agent.set_logger(configure(None, []))
    agent.learn(1, log_interval=10**9)
    logged = agent.logger.name_to_value
    assert logged["reward"] == pytest.approx(float(agent.data.returns_B.mean()))
    assert logged["completions/mean_length"] == pytest.approx(agent.data.num_tokens / 6)
    names = {"loss/td", "loss/expectile", "loss/cloning", "loss/conservative", "q/advantage_mean", "policy/grad_norm"}
    assert names <= set(logged)
    assert len(agent.ep_info_buffer) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expectile": 1.0}, "expectile must lie between 0 and 1, got 1.0"),
        ({"minibatches": 0}, "minibatches must be at least 1"),
        ({"cloning_coef": -1.0}, "cloning_coef must not be negative"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ILQLConfig(**options)
