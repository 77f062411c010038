import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure

from agents import A2C, DQN, GRPO, NLPO, PPO, REINFORCE
from agents.cloning import likelihood_gradients
from agents.evaluation import evaluate
from agents.multitask.agent import conflicts, multitask
from agents.multitask.env import Task, TaskRows, joined, rows_by_task, shares
from tests.agents.conftest import gpt2_config, gradients, largest_gap, letters, make_env, make_mdp, weights

OPTIONS = {
    "seed": 3,
    "device": "cpu",
    "episodes_per_rollout": 16,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "constant",
    "num_envs": 4,
}


def brief(completions, **_):
    """A reward at odds with `letters`, and of another scale."""
    return [-10.0 * len(text.split()) for text in completions]


def two(first=1.0, second=0.5, **kwargs):
    mdps = make_mdp(letters), make_mdp(brief, prompts=["b a", "c c c"], max_new_tokens=4)
    return [Task("letters", mdps[0], first), Task("brief", mdps[1], second, **kwargs)]


def make(kind=A2C, tasks=None, **options):
    agent = multitask(kind)(gpt2_config(), TaskRows(tasks or two(), 4), **{**OPTIONS, **options})
    agent.set_logger(configure(None, []))
    return agent


def alone(agent, task, kind, **options):
    """The single-task agent with the same weights."""
    single = kind(gpt2_config(), make_env(mdp=task.mdp), **{**OPTIONS, **options})
    single.policy.load_state_dict(agent.policy.state_dict())
    single.set_logger(configure(None, []))
    return single


def rollout(agent):
    found = agent.collector.collect(
        agent.config.episodes_per_rollout, samples_per_prompt=agent.config.samples_per_prompt
    )
    assert found is not None
    return found


def update_gradients(agent, trajectories):
    batch = agent.prepare(trajectories)
    stats = agent.accumulate_gradients(batch, torch.arange(len(trajectories)))
    found = gradients(agent.policy)
    agent.policy.zero_grad(set_to_none=True)
    return found, stats


# --- the sum


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (A2C, {}),
        (PPO, {"minibatches": 1}),
        (REINFORCE, {"samples_per_prompt": 2}),
        (REINFORCE, {"baseline": "self_critical", "samples_per_prompt": 2}),
        (GRPO, {"samples_per_prompt": 4, "minibatches": 1}),
        (A2C, {"whiten_advantages": True, "whiten_rewards": True, "gae_lambda": 0.5, "micro_batch_tokens": 64}),
    ],
)
def test_the_gradient_is_the_weighted_sum_of_the_tasks_own(kind, options):
    """Σ λ_k ∇L_k, each ∇L_k that of a single-task agent on the same episodes."""
    tasks = two(0.7, 0.3)
    agent = make(kind, tasks, **options)
    trajectories = rollout(agent)
    own = {}
    for task in tasks:
        single = alone(agent, task, kind, **options)
        rows = rows_by_task(trajectories)[task.name]
        own[task.name], _ = update_gradients(single, trajectories.select(rows))
    found, stats = update_gradients(agent, trajectories)
    expected = {name: 0.7 * own["letters"][name] + 0.3 * own["brief"][name] for name in found}
    scale = max(float(value.abs().max()) for value in expected.values())
    assert largest_gap(found, expected) < 1e-5 * scale
    plain = {name: own["letters"][name] + own["brief"][name] for name in found}
    assert largest_gap(found, plain) > 1e-2 * scale  # must fail: weights left out
    flat = [torch.cat([value.flatten() for value in each.values()]).double() for each in own.values()]
    cosine = float(flat[0] @ flat[1] / (flat[0].norm() * flat[1].norm()))
    assert stats["tasks/cosine/letters-brief"] == pytest.approx(cosine, abs=1e-4)


def test_one_batch_for_all_would_not_be_the_sum():
    """Must fail: whitened together, the task of large rewards drowns the other's advantages."""
    agent = make(A2C, two(1, 1), whiten_advantages=True)
    trajectories = rollout(agent)
    found, _ = update_gradients(agent, trajectories)
    mixed, _ = update_gradients(alone(agent, two()[0], A2C, whiten_advantages=True), trajectories)
    scale = max(float(value.abs().max()) for value in found.values())
    assert largest_gap(found, {name: 2 * value for name, value in mixed.items()}) > 1e-2 * scale


def test_two_equal_tasks_with_half_the_weight_are_one():
    mdp = make_mdp()
    agent = make(A2C, [Task("a", mdp, 0.5), Task("b", mdp, 0.5)])
    part = alone(agent, Task("a", mdp), A2C).collector.collect(8)
    found, stats = update_gradients(agent, joined({"a": part, "b": part}))
    expected, _ = update_gradients(alone(agent, Task("a", mdp), A2C), part)
    assert largest_gap(found, expected) < 1e-7
    assert stats["tasks/cosine/a-b"] == pytest.approx(1)


@pytest.mark.parametrize(("kind", "options"), [(PPO, {"epochs": 2, "minibatches": 2}), (REINFORCE, {}), (NLPO, {})])
def test_one_task_is_the_algorithm_itself(kind, options):
    """To the last digit, rollouts, minibatches and updates."""
    task = Task("letters", make_mdp())
    agent = make(kind, [task], **options)
    single = kind(gpt2_config(), make_env(mdp=task.mdp), **{**OPTIONS, **options})
    for each in (agent, single):
        each.learn(120)
    assert agent.num_timesteps == single.num_timesteps
    assert largest_gap(weights(agent.policy), weights(single.policy)) == 0


def test_weight_0_is_absent():
    """A task that does not count, before or behind the other, changes nothing; with a weight it does."""
    first, second = two()
    off = Task("off", second.mdp, 0.0)
    agents = [make(PPO, tasks, minibatches=2) for tasks in ([first], [first, off], [off, first], [first, second])]
    for agent in agents:
        agent.learn(100)
    expected = weights(agents[0].policy)
    gaps = [largest_gap(weights(agent.policy), expected) for agent in agents]
    assert gaps[:3] == [0, 0, 0]
    assert gaps[3] > 0


def test_likelihood_beside_reward():
    """PPO-ptx: the gradient of −log π of references, beside the policy gradient of the other task."""
    tasks = two(1.0, 2.0, loss="likelihood")
    agent = make(PPO, tasks, minibatches=1)
    trajectories = rollout(agent)
    found, stats = update_gradients(agent, trajectories)
    rows = rows_by_task(trajectories)
    drawn = trajectories.select(rows["brief"])
    assert {info["text"] for info in drawn.infos} == {"a b"}
    assert (drawn.log_probs_BT == 0).all()  # nobody sampled them
    single = alone(agent, tasks[0], PPO, minibatches=1)
    own, _ = update_gradients(single, trajectories.select(rows["letters"]))
    likelihood_gradients(single, drawn)
    written = {name: torch.zeros_like(value) for name, value in own.items()} | gradients(single.policy)
    assert largest_gap(found, {name: own[name] + 2 * written[name] for name in own}) < 1e-6
    assert stats["brief/loss/policy"] > 0
    agent.learn(60)  # the checks of the first rollout are about what was played


def test_all_likelihood_is_supervised_learning():
    agent = make(A2C, [Task(name, make_mdp(), loss="likelihood") for name in "ab"], learning_rate=1e-2)
    before = update_gradients(agent, rollout(agent))[1]["a/loss/policy"]
    agent.learn(1_500)
    after = update_gradients(agent, rollout(agent))[1]["a/loss/policy"]
    assert after < 0.5 * before


# --- conflict


def test_cosines():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    found = conflicts({"a": [x, None], "b": [-x, y], "c": [None, None]})
    assert found["tasks/cosine/a-b"] == pytest.approx(-1 / np.sqrt(5))
    assert found["tasks/cosine/a-c"] == 0
    assert found["b/policy/own_grad_norm"] == pytest.approx(np.sqrt(5))


def test_opposite_rewards_pull_against_each_other():
    mdps = [make_mdp(lambda completions, sign=sign: [sign * t.count("a") for t in completions]) for sign in (1.0, -1.0)]
    agent = make(A2C, [Task("more", mdps[0]), Task("less", mdps[1])], episodes_per_rollout=64)
    assert update_gradients(agent, rollout(agent))[1]["tasks/cosine/more-less"] < -0.5


# --- rollouts


def test_a_rollout_has_as_many_episodes_of_each_task():
    agent = make(PPO, minibatches=4, samples_per_prompt=2)
    trajectories = rollout(agent)
    rows = rows_by_task(trajectories)
    assert {name: len(found) for name, found in rows.items()} == {"letters": 8, "brief": 8}
    assert int(trajectories.select(rows["brief"]).lengths_B.max()) <= 4  # each under its own cap
    for minibatch in trajectories.minibatches(4, np.random.default_rng(0)):
        names = [trajectories.infos[row]["task"] for row in minibatch.tolist()]
        assert names == ["letters"] * 2 + ["brief"] * 2
        assert len(set(trajectories.prompt_groups_B[minibatch].tolist())) == 2


def test_joined_episodes_come_apart_again():
    mdps = make_mdp(), make_mdp(prompts=["f f f f f"], max_new_tokens=2)
    parts = {name: make(A2C, [Task(name, mdp)]).collector.collect(4) for name, mdp in zip("ab", mdps, strict=True)}
    whole = joined(parts)
    for name, rows in rows_by_task(whole).items():
        again = whole.select(rows)
        for field in ("input_ids_BS", "action_mask_BT", "log_probs_BT", "rewards_BT", "prompt_lengths_B"):
            assert torch.equal(getattr(again, field), getattr(parts[name], field)), field


def test_metrics_stand_behind_the_tasks_names(tmp_path):
    agent = make(PPO, minibatches=2)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(80)
    agent.logger.close()
    names = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    for task in ("letters", "brief"):
        for metric in ("reward", "entropy", "kl/per_sequence", "completions/mean_length", "explained_variance"):
            assert f"{task}/{metric}" in names
    assert {"reward", "entropy", "loss/policy", "tasks/cosine/letters-brief"} <= set(names)


def test_each_task_has_its_own_kl_coefficient_and_baseline():
    agent = make(REINFORCE, baseline="moving_average", kl_target_per_sequence=0.5)
    update_gradients(agent, rollout(agent))
    averages = {name: own["moving_average"] for name, own in agent._own.items()}
    assert averages["letters"] != averages["brief"]
    assert agent.moving_average is None
    with agent.playing("brief"):
        agent.kl_controller.update(0.9, 5_000)
    coefs = {name: own["kl_controller"].coef for name, own in agent._own.items()}
    assert coefs["brief"] > coefs["letters"]
    assert agent.kl_controller.coef == agent.config.kl_coef_per_sequence


# --- the SB3 citizen


def test_a_saved_agent_goes_on_as_if_it_had_not_stopped(tmp_path):
    options = {"minibatches": 2, "kl_target_per_sequence": 0.5}
    whole, half = make(PPO, **options), make(PPO, **options)
    whole.learn(60)
    half.learn(60)
    half.save(tmp_path / "agent.zip")
    resumed = multitask(PPO).load(tmp_path / "agent.zip", env=TaskRows(two(), 4), device="cpu")
    for agent in (whole, resumed):
        agent.learn(60, reset_num_timesteps=False)
    assert largest_gap(weights(whole.policy), weights(resumed.policy)) == 0
    assert resumed._own["brief"]["kl_controller"] == whole._own["brief"]["kl_controller"]


def test_it_speaks_and_is_evaluated_task_by_task():
    agent = make(A2C)
    assert len(agent.generate(["a", "b c"], max_new_tokens=3)) == 2
    scores = [evaluate(agent, task.mdp, num_prompts=2, seed=1).mean for task in agent.tasks.tasks]
    assert scores[1] <= 0
    mean, _ = evaluate_policy(agent, agent.get_env(), n_eval_episodes=8, warn=False)
    assert mean < 1


def test_rows_step_as_their_tasks_do():
    rows = TaskRows(two(), 4)
    observations, infos = rows.reset(seed=5)
    singles = [make_env(2, mdp=task.mdp) for task in rows.tasks]
    own = [single.reset(seed=5 + 2 * at)[0] for at, single in enumerate(singles)]
    assert observations in rows.observation_space
    generator = np.random.default_rng(0)
    for _ in range(8):
        actions = generator.integers(8, size=4)
        observations, rewards, ended, _, infos = rows.step(actions)
        steps = [single.step(part) for single, part in zip(singles, (actions[:2], actions[2:]), strict=True)]
        own = [step[0] for step in steps]
        for at, step in enumerate(steps):
            width = own[at]["input_ids"].shape[1]
            assert (observations["input_ids"][2 * at : 2 * at + 2, :width] == own[at]["input_ids"]).all()
            assert (rewards[2 * at : 2 * at + 2] == step[1]).all()
        if "task" in infos:
            named = [infos["task"][row] for row in np.flatnonzero(infos["_task"])]
            assert set(named) <= {"letters", "brief"}
        if ended.any():
            rows.reset(options={"reset_mask": ended})
            for at, single in enumerate(singles):
                if ended[2 * at : 2 * at + 2].any():
                    single.reset(options={"reset_mask": ended[2 * at : 2 * at + 2]})


# --- what is refused


def test_only_policy_gradients():
    with pytest.raises(ValueError, match=r"DQN cannot learn several tasks, a2c, grpo, nlpo, ppo, reinforce can"):
        multitask(DQN)


def test_what_does_not_fit_together():
    mdp = make_mdp()
    with pytest.raises(ValueError, match="no task has a weight above 0"):
        TaskRows([Task("a", mdp, 0.0)])
    with pytest.raises(ValueError, match="two tasks have the same name"):
        TaskRows([Task("a", mdp), Task("a", mdp)])
    with pytest.raises(ValueError, match="must be 0 or above"):
        Task("a", mdp, -1.0)
    with pytest.raises(ValueError, match="did you mean 'likelihood'"):
        Task("a", mdp, loss="likelyhood")
    with pytest.raises(ValueError, match="no slash"):
        Task("a/b", mdp)
    with pytest.raises(ValueError, match="different tokenizers"):
        TaskRows([Task("a", mdp), Task("b", make_mdp(prompts=["a"], words="a b"))])
    with pytest.raises(ValueError, match="too few for 2 tasks"):
        TaskRows(two(), 1)
    with pytest.raises(TypeError, match="learns in TaskRows"):
        multitask(A2C)(gpt2_config(), make_env(), **OPTIONS)
    with pytest.raises(ValueError, match="8 minibatches need as many prompts of every task, got 4"):
        make(PPO, minibatches=8, samples_per_prompt=2)
    with pytest.raises(ValueError, match="cannot be shared"):
        shares(1, 2)
    agent = make(A2C)
    with pytest.raises(ValueError, match="ask its own collector"):
        agent.collector.collect(4, prompt_indices=[0, 1, 2, 3])
