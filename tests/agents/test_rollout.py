"""Whole episodes, a fixed number of started ones, with every number where it belongs."""

import random

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformReward

from agents.decoder import invert_cumulative, sample_actions
from agents.model_source import load_model
from agents.policy import TextPolicy
from agents.rollout import Collector
from tests.agents.conftest import gpt2_config, letters, make_agent, make_env, make_mdp, word_tokenizer
from textgen_env import TextGenEnv, TextTask, dense

TENSORS = (
    "input_ids_BS",
    "prompt_lengths_B",
    "action_mask_BT",
    "log_probs_BT",
    "values_BT",
    "rewards_BT",
    "bootstrap_values_B",
    "prompt_groups_B",
)


@pytest.fixture(scope="module")
def policy():
    policy = TextPolicy(load_model(gpt2_config(), 0), 8)
    with torch.no_grad():  # a critic that says something, so that values can be wrong
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return policy


def collect(policy, episodes=10, env=None, seed=0, **kwargs):
    return Collector(make_env() if env is None else env, policy, seed=seed).collect(episodes, **kwargs)


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


# --- the numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3, 4, 16])
@pytest.mark.parametrize("episodes", [1, 4, 10])
def test_as_many_episodes_as_asked_for(policy, num_envs, episodes):
    rollout = collect(policy, episodes, make_env(num_envs))
    assert len(rollout) == len(rollout.lengths_B) == episodes
    assert (rollout.lengths_B >= 1).all()
    assert rollout.num_tokens == rollout.lengths_B.sum()
    assert [len(c.token_ids) for c in rollout.completions] == rollout.lengths_B.tolist()


def actions_of(rollout, row):
    start, length = int(rollout.prompt_lengths_B[row]), int(rollout.lengths_B[row])
    return rollout.input_ids_BS[row, start : start + length].tolist()


@pytest.mark.parametrize("defer_scoring", [False, True])
def test_actions_texts_and_ends_are_the_environments_own(policy, defer_scoring):
    env = make_env(defer_scoring=defer_scoring)
    rollout = collect(policy, 30, env)
    reasons = [info["stop_reason"] for info in rollout.infos]
    assert set(reasons) == {"eos", "length"}
    for row, info in enumerate(rollout.infos):
        actions = actions_of(rollout, row)
        assert info["completion"].token_ids == tuple(actions)
        assert info["text"] == env.mdp.tokenizer.decode(actions)
        assert (actions[-1] == 1) == (info["stop_reason"] == "eos")
        assert 1 not in actions[:-1]
        prompt = rollout.input_ids_BS[row, : rollout.prompt_lengths_B[row]].tolist()
        assert prompt == env.mdp.tokenizer.encode_prompt(info["prompt"]).tolist()
        assert rollout.returns_B[row] == pytest.approx(letters([info["text"]], None)[0])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_log_probs_and_values_are_the_trainers(policy, precision):
    policy = TextPolicy(policy.model, 8, precision=precision)
    rollout = collect(policy, 30)
    with torch.no_grad():
        log_probs, values, _ = policy.score_actions(
            rollout.input_ids_BS, rollout.prompt_lengths_B, rollout.action_mask_BT
        )
    assert rollout.log_probs_BT.dtype == rollout.values_BT.dtype == torch.float32
    tolerance = 1e-4 if precision == "float32" else 0.2
    torch.testing.assert_close(rollout.log_probs_BT, log_probs, rtol=0, atol=tolerance)
    torch.testing.assert_close(rollout.values_BT, values, rtol=0, atol=tolerance)
    assert rollout.log_probs_BT[rollout.action_mask_BT].min() < -1


def per_token(completion_ids):
    return [[token / 10 for token in ids] for ids in completion_ids]


@dense
def as_it_comes(completion_ids, stop_reasons):
    return [
        [token / 10 + (i == len(ids) - 1 and stop is not None) for i, token in enumerate(ids)]
        for ids, stop in zip(completion_ids, stop_reasons, strict=True)
    ]


def terminal(completion_ids):
    return [10.0 + len(ids) for ids in completion_ids]


@pytest.mark.parametrize(
    ("reward", "defer_scoring"),
    [(terminal, False), (terminal, True), (per_token, False), (per_token, True), (as_it_comes, False)],
)
def test_rewards_land_on_their_tokens(policy, reward, defer_scoring):
    rollout = collect(policy, 20, make_env(reward=reward, defer_scoring=defer_scoring))
    for row in range(20):
        actions = actions_of(rollout, row)
        if reward is terminal:
            expected = [0.0] * (len(actions) - 1) + [10.0 + len(actions)]
        else:
            expected = [token / 10 for token in actions]
            expected[-1] += reward is as_it_comes
        rewards = rollout.rewards_BT[row]
        torch.testing.assert_close(rewards[: len(actions)], torch.tensor(expected))
        assert (rewards[len(actions) :] == 0).all()


def test_deferred_scoring_gives_the_same_rollout_and_asks_once(policy):
    calls = []

    def counted(completions):
        calls.append(len(completions))
        return letters(completions, None)

    immediate = collect(policy, 20, make_env(reward=counted))
    assert sum(calls) == 20
    assert len(calls) > 1
    calls.clear()
    deferred = collect(policy, 20, make_env(reward=counted, defer_scoring=True))
    assert calls == [20]
    assert same(immediate, deferred)
    for first, second in zip(immediate.infos, deferred.infos, strict=True):
        assert first == second


def test_selecting_rows_trims_and_keeps_them_whole(policy):
    rollout = collect(policy, 20)
    rows = [7, 2, 11]
    part = rollout.select(rows)
    assert part.action_mask_BT.shape[1] == int(part.lengths_B.max())
    assert part.input_ids_BS.shape[1] == int((part.prompt_lengths_B + part.lengths_B).max())
    for index, row in enumerate(rows):
        assert actions_of(part, index) == actions_of(rollout, row)
        assert part.infos[index] is rollout.infos[row]
        assert part.returns_B[index] == rollout.returns_B[row]


# --- which episodes ---------------------------------------------------------------------------------------


class Chain(TextPolicy):
    """A policy whose next token depends on the last one alone, so that lengths can be computed by hand."""

    def __init__(self, table):
        super().__init__(load_model(gpt2_config(len(table), layers=1, positions=CAP + 1)), len(table))
        self.table = torch.tensor(table).log()

    def forward(self, input_ids, position_ids, select, *, attention_mask=None, cache=None):
        logits = self.table[input_ids.flatten()[select]]
        return logits, logits.new_zeros(len(logits))


STOP = {"a": 0.8, "b": 0.05}
"""Chance that an answer stops after each token, by its prompt: "a" gives short answers, "b" long ones."""
CAP = 30


def chain_world(num_envs=16):
    rows = {word: [0.0, stop, *(1 - stop if other == word else 0.0 for other in STOP)] for word, stop in STOP.items()}
    policy = Chain([[0.0, 1.0, 0.0, 0.0]] * 2 + [rows["a"], rows["b"]])
    return policy, make_env(num_envs, mdp=make_mdp(prompts=list(STOP), words=" ".join(STOP), max_new_tokens=CAP))


def expected_length():
    """E[min(geometric, cap)] = (1 − (1 − p)^cap) / p, over both prompts alike."""
    return float(np.mean([(1 - (1 - p) ** CAP) / p for p in STOP.values()]))


def standard_errors(lengths):
    return (np.mean(lengths) - expected_length()) / (np.std(lengths) / np.sqrt(len(lengths)))


def test_short_answers_are_not_favoured():
    policy, env = chain_world()
    collector = Collector(env, policy, seed=0)
    lengths = np.concatenate([collector.collect(32).lengths_B.numpy() for _ in range(40)])
    assert len(lengths) == 1280
    assert abs(standard_errors(lengths)) < 4


def test_a_first_come_collector_is_seen_to_favour_them():
    """Must fail: rows restarted at once, and a rollout that is full with the first 32 episodes that end."""
    _, env = chain_world()
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(40):
        observations, _ = env.reset(options={"prompt_index": rng.integers(2, size=16)})
        prompts, finished, running = observations["input_ids"][:, 0], [], np.zeros(16, dtype=int)
        while len(finished) < 32:
            running += 1
            ended = (rng.random(16) < np.where(prompts == 2, STOP["a"], STOP["b"])) | (running == CAP)
            finished += running[ended].tolist()
            prompts = np.where(ended, rng.integers(2, 4, size=16), prompts)
            running[ended] = 0
        lengths += finished[:32]
    assert standard_errors(np.array(lengths)) < -4


def prompts_of(rollout):
    return [info["prompt"] for info in rollout.infos]


def test_every_prompt_is_used_once_an_epoch(policy):
    env = make_env()
    collector = Collector(env, policy, seed=0)
    drawn = [prompt for _ in range(4) for prompt in prompts_of(collector.collect(9))]
    epochs = [drawn[start : start + 6] for start in range(0, 36, 6)]
    everything = sorted(prompt.text for prompt in env.mdp.prompts)
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # each in an order of its own


def test_samples_of_a_group_share_their_prompt(policy):
    rollout = collect(policy, 12, samples_per_prompt=3)
    assert rollout.prompt_groups_B.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    prompts = prompts_of(rollout)
    assert all(len(set(prompts[start : start + 3])) == 1 for start in range(0, 12, 3))
    assert len(set(prompts)) == 4
    assert len({tuple(actions_of(rollout, row)) for row in range(12)}) > 4  # and are samples of their own


def test_prompts_can_be_chosen(policy):
    env = make_env()
    chosen = prompts_of(collect(policy, 6, env, samples_per_prompt=2, prompt_indices=[4, 0, 4]))
    texts = [prompt.text for prompt in env.mdp.prompts]
    assert chosen == [texts[4]] * 2 + [texts[0]] * 2 + [texts[4]] * 2
    with pytest.raises(ValueError, match="2 prompt_indices were given for 3 prompts"):
        collect(policy, 3, env, prompt_indices=[1, 2])


@pytest.mark.parametrize(("episodes", "samples"), [(0, 1), (5, 2)])
def test_uneven_groups_are_refused(policy, episodes, samples):
    with pytest.raises(ValueError, match="must be a positive multiple"):
        collect(policy, episodes, samples_per_prompt=samples)


# --- randomness -------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_rollout(policy):
    first, again, other = (collect(policy, 20, seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert prompts_of(first) == prompts_of(again)
    assert not torch.equal(first.input_ids_BS, other.input_ids_BS)


def test_a_collectors_state_goes_on_where_it_was(policy):
    first = Collector(make_env(), policy, seed=1)
    first.collect(7)
    state = first.state()
    expected = first.collect(7)
    second = Collector(make_env(), policy, seed=99)
    second.load_state(state)
    assert same(second.collect(7), expected)


def test_greedy_episodes_take_the_likeliest_token(policy):
    first, again = (collect(policy, 6, seed=seed, greedy=True, prompt_indices=range(6)) for seed in (0, 1))
    assert same(first, again)  # whatever the seed
    for row in range(6):
        ids = first.input_ids_BS[row]
        prompt, length = int(first.prompt_lengths_B[row]), int(first.lengths_B[row])
        logits = policy.model(input_ids=ids[None, : prompt + length]).logits[0]
        assert logits[prompt - 1 : -1].argmax(-1).tolist() == actions_of(first, row)


def global_states():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


def test_no_global_generator_is_touched():
    before = global_states()
    make_agent(kl_coef_per_sequence=0.1).learn(60)
    assert global_states() == before
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(1)
    assert all(now != then for now, then in zip(global_states(), before, strict=True))  # it would be seen


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, float("-inf"), 0.0, -1.0, 1.0, float("-inf")])
    draws, generator = 20_000, torch.Generator().manual_seed(0)
    actions = sample_actions(logits.expand(draws, -1).log_softmax(-1), generator)
    counts = torch.bincount(actions, minlength=6).double()
    assert counts[1] == counts[5] == 0
    expected = draws * logits.double().softmax(-1)
    possible = expected > 0

    def chi_square(expected):
        return float(((counts - expected) ** 2 / expected)[possible].sum())

    assert chi_square(expected) < 16.3  # .999 quantile at 3 degrees of freedom
    assert chi_square(draws * (logits.double() / 1.1).softmax(-1)) > 16.3  # must fail: a temperature forgotten


def test_an_impossible_token_is_never_drawn_at_either_end(monkeypatch):
    log_probs = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    for uniform in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *_, value=uniform, **__: torch.tensor([[value]], dtype=torch.float64))
        assert sample_actions(log_probs, None).tolist() == [1]


@pytest.mark.parametrize("vocab_size", [4_097, 50_257, 256 * 300])
def test_a_large_vocabulary_is_drawn_from_by_blocks(vocab_size):
    """The same as accumulating all of it, but where a uniform falls on a boundary up to rounding."""
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(40, vocab_size, generator=generator)
    logits[:, torch.randperm(vocab_size, generator=generator)[: vocab_size // 2]] = -torch.inf
    logits[0], logits[0, -1] = -torch.inf, 0.0  # the last token of the last block
    logits[1], logits[1, 0] = -torch.inf, 0.0
    log_probs = logits.log_softmax(-1)
    uniform = torch.rand(40, 1, generator=generator, dtype=torch.float64)
    cumulative = log_probs.exp().double().cumsum(-1)
    expected = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)
    assert invert_cumulative(log_probs, uniform).tolist() == expected.tolist()
    for end in (0.0, 1 - 2**-53):
        drawn = invert_cumulative(log_probs, torch.full_like(uniform, end))
        assert log_probs.gather(-1, drawn[:, None]).isfinite().all()
        assert drawn[:2].tolist() == [vocab_size - 1, 0]


@pytest.mark.parametrize("vocab_size", [6, 50_257])
def test_logits_that_are_no_numbers_stay_within_the_vocabulary(vocab_size):
    log_probs = torch.full((2, vocab_size), torch.nan)
    drawn = invert_cumulative(log_probs, torch.full((2, 1), 0.5, dtype=torch.float64))
    assert drawn.tolist() == [vocab_size - 1] * 2


def test_logits_that_are_no_numbers_end_the_rollout():
    agent = make_agent()
    with torch.no_grad():
        agent.policy.model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="logits are not finite: lower learning_rate"):
        agent.collector.collect(4)


def test_a_state_of_another_kind_of_device_goes_on_with_other_samples():
    """A CUDA generator's state has 16 bytes, a CPU one's thousands."""
    agent, other = make_agent(), make_agent(seed=9)
    state = {**agent.collector.state(), "generator": np.zeros(16, dtype=np.uint8)}
    before = other.collector.generator.get_state()
    with pytest.warns(UserWarning, match="another kind of device than 'cpu'"):
        other.collector.load_state(state)
    assert torch.equal(other.collector.generator.get_state(), before)
    assert other.collector.state()["prompt_order"] == state["prompt_order"]


# --- others' environments and stops -----------------------------------------------------------------------


def single(limit=None, reward=letters, **kwargs):
    task = TextTask.from_pairs({"train": ["a", "b c d", "e f"]}, name="letters")

    def make():
        env = TextGenEnv(task=task, reward=reward, tokenizer=word_tokenizer("a b c d e f"), max_new_tokens=8, **kwargs)
        return env if limit is None else TimeLimit(env, limit)

    return make


def sync(make, count=3, mode=AutoresetMode.DISABLED):
    return SyncVectorEnv([make] * count, autoreset_mode=mode)


@pytest.mark.parametrize("episodes", [2, 3, 11])
def test_single_environments_side_by_side(policy, episodes):
    rollout = collect(policy, episodes, sync(single()))
    assert len(rollout) == episodes
    with torch.no_grad():
        log_probs, *_ = policy.score_actions(rollout.input_ids_BS, rollout.prompt_lengths_B, rollout.action_mask_BT)
    torch.testing.assert_close(rollout.log_probs_BT, log_probs, rtol=0, atol=1e-4)
    for row, info in enumerate(rollout.infos):
        assert info["completion"].token_ids == tuple(actions_of(rollout, row))
        assert rollout.returns_B[row] == pytest.approx(letters([info["text"]], None)[0])


def test_per_token_rewards_survive_the_protocol(policy):
    rollout = collect(policy, 6, sync(single(reward=per_token)))
    for row in range(6):
        expected = torch.tensor([token / 10 for token in actions_of(rollout, row)])
        torch.testing.assert_close(rollout.rewards_BT[row, : len(expected)], expected)


def test_a_wrapper_that_changes_rewards_is_honoured(policy):
    """Its word counts, also where the reward inside gave one value a token."""
    doubled = collect(policy, 6, sync(lambda: TransformReward(single(reward=per_token)(), lambda r: 2 * r)))
    for row in range(6):
        expected = 2 * sum(token / 10 for token in actions_of(doubled, row))
        assert float(doubled.returns_B[row]) == pytest.approx(expected, rel=1e-5)


def test_truncated_episodes_bootstrap_from_the_critic(policy):
    rollout = collect(policy, 40, sync(single(limit=3)))
    by_choice = torch.tensor([actions_of(rollout, row)[-1] == 1 for row in range(40)])
    assert set(rollout.lengths_B[by_choice].tolist()) == {1, 2, 3}  # the limit's own step among them
    assert (rollout.lengths_B[~by_choice] == 3).all()
    assert (rollout.bootstrap_values_B[by_choice] == 0).all()
    for row in (~by_choice).nonzero().flatten():
        ids = rollout.input_ids_BS[row, : rollout.prompt_lengths_B[row] + 3]
        positions = torch.arange(len(ids))
        with torch.no_grad():
            _, value = policy(ids[None], positions[None], positions[-1:])
        assert float(rollout.bootstrap_values_B[row]) == pytest.approx(float(value), abs=1e-5)
        assert value != 0


def test_an_agent_learns_from_truncated_episodes():
    """Their infos hold no reward components, and the log must not stumble over that."""
    agent = make_agent(single(limit=3)(), episodes_per_rollout=12)
    agent.learn(40)
    assert agent.logger.name_to_value is not None
    assert agent.num_timesteps >= 40


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_an_environment_that_resets_by_itself_is_refused(policy, mode):
    with pytest.raises(ValueError, match=r"resets rows itself.*autoreset_mode='Disabled'"):
        Collector(sync(single(), mode=mode), policy)


def test_prompts_cannot_be_chosen_where_the_environment_draws_them(policy):
    with pytest.raises(ValueError, match="honours options"):
        collect(policy, 4, sync(single()), samples_per_prompt=2)


def test_a_step_hook_sees_every_step_and_can_stop(policy):
    steps = []

    def hook(step):
        steps.append(step["num_running"])
        return len(steps) < 4

    collector = Collector(make_env(), policy, seed=0)
    assert collector.collect(20, on_step=hook) is None
    assert len(steps) == 4
    steps = [-100]
    rollout = collector.collect(20, on_step=lambda step: steps.append(step["num_running"]) or True)
    assert sum(steps) + 100 == rollout.num_tokens  # running rows alone are counted, and an abandoned rollout is over


def test_an_abandoned_rollout_leaves_no_trace(policy):
    collector = Collector(make_env(6), policy, seed=0)
    assert collector.collect(6, on_step=lambda _: False) is None
    rollout = collector.collect(2)  # four rows still stand in the middle of their episodes
    assert len(rollout) == 2
    assert [len(c.token_ids) for c in rollout.completions] == rollout.lengths_B.tolist()
