import copy
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from agents import DQN, PPOConfig
from agents.algorithms import ALGORITHMS
from agents.base import TextAlgorithm
from agents.evaluation import evaluate, on_split
from agents.logged import reference_episodes
from agents.policy import TextPolicy
from benchmarks import contenders_trl, presets, trial
from benchmarks.contenders import contenders, find_contender
from benchmarks.contenders_sb3 import as_text_policy, make_ppo
from benchmarks.contenders_trl import Collator, EnvironmentAsRewardModel, Scorer, prompt_texts
from benchmarks.setups import setup, setups
from benchmarks.trial import Examinee, Job, best_of, run
from benchmarks.warm_start import make_start
from benchmarks.watch import Watch
from tests.benchmarks.conftest import RUNG
from textgen_env import TextMDP

LINE = {
    *("task", "contender", "seed", "setup", "preset", "budget", "circumstances", "score", "normalised", "optimum"),
    *("random", "sampled", "entropy", "kl_per_sequence", "tokens", "episodes", "cpu_seconds", "wall_seconds"),
    *("warm_start_cpu_seconds", "process_cpu_seconds", "peak_memory_mb", "solved_at", "curve", "samples"),
}
PEERS = ("sb3_ppo", "trl_ppo", "trl_rloo", "trl_grpo")


def trl_or_skip(name):
    if name.startswith("trl"):
        pytest.importorskip("trl", reason="pip install 'textgen-env[peers]'")


def without_times(line):
    """Everything that a seed decides."""
    timed = {"cpu_seconds", "wall_seconds", "warm_start_cpu_seconds", "process_cpu_seconds", "peak_memory_mb"}
    if isinstance(line, dict):
        return {name: without_times(value) for name, value in line.items() if name not in {*timed, "circumstances"}}
    return [without_times(part) for part in line] if isinstance(line, list) else line


@pytest.fixture
def start(tiny_ladder):
    return make_start(setup("Reverse"), seed=1)


# --- presets ----------------------------------------------------------------------------------------------


def test_every_preset_fits_its_contender_and_its_tasks():
    known = contenders()
    for name in presets.names():
        assert name in known
        assert set(json.loads((presets._FOLDER / f"{name}.json").read_text())["tasks"]) <= set(setups())
        for task in setups():
            if name in ALGORITHMS:
                assert type(presets.preset(name, task)) is ALGORITHMS[name][1]


def test_a_task_changes_the_defaults(tiny_ladder):
    content = {"defaults": {"gamma": 0.5, "num_envs": 8}, "tasks": {"Reverse": {"gamma": 1.0}}}
    (presets._FOLDER / "ppo.json").write_text(json.dumps(content))
    assert presets.preset("ppo", "Reverse") == PPOConfig(gamma=1.0, num_envs=8)
    assert presets.options("ppo", "DelayedBit") == {"gamma": 0.5, "num_envs": 8}
    (presets._FOLDER / "ppo.json").write_text(json.dumps({"defaults": {"gama": 1}, "tasks": {}}))
    with pytest.raises(TypeError, match="no option 'gama': did you mean 'gamma'"):
        find_contender("ppo").check(setup("Reverse"))


def own(folder, **parts):
    path = folder / "mine.json"
    path.write_text(json.dumps(parts))
    return path


def test_a_file_of_ones_own_changes_what_it_names(tiny_ladder):
    path = own(tiny_ladder, defaults={"learning_rate": 0.5}, tasks={"Reverse": {"learning_rate": 0.25}})
    built_in = presets.preset("ppo", "Reverse")
    mine = presets.preset(f"ppo@{path}", "Reverse")
    assert mine == replace(built_in, learning_rate=0.25)
    assert presets.preset(f"ppo@{path}", "DelayedBit").learning_rate == 0.5
    assert find_contender(f"ppo@{path}").options(setup("Reverse")) == asdict(mine)
    assert find_contender("ppo").options(setup("Reverse")) == asdict(built_in)
    assert find_contender(f"trl_ppo@{path}").options(setup("Reverse"))["learning_rate"] == 0.25


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"default": {}}, "did you mean 'defaults'"),
        ({"tasks": {"Revers": {}}}, "did you mean 'Reverse'"),
        ({"defaults": 1}, "'defaults' is no mapping"),
        ({"defaults": {"gama": 1}}, "mine.json': .* did you mean 'gamma'"),
    ],
)
def test_a_file_that_would_change_nothing_is_refused(tiny_ladder, parts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        find_contender(f"ppo@{own(tiny_ladder, **parts)}").check(setup("Reverse"))


def test_a_file_that_is_none_of_presets(tiny_ladder):
    path = tiny_ladder / "mine.json"
    with pytest.raises(FileNotFoundError, match=re.escape("mine.json")):
        find_contender(f"ppo@{path}").check(setup("Reverse"))
    for text, message in (("{", "is no JSON"), ("[]", "holds no mapping")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            find_contender(f"ppo@{path}").check(setup("Reverse"))
    with pytest.raises(ValueError, match=re.escape("benchmarks/tasks.json")):
        find_contender(f"supervised@{path}")


# --- the start --------------------------------------------------------------------------------------------


def test_all_start_from_the_same_weights_kept_or_computed(tiny_ladder, tmp_path):
    first, second = (make_start(setup("Reverse"), 3, cache=tmp_path) for _ in range(2))
    again, other = make_start(setup("Reverse"), 3), make_start(setup("Reverse"), 4)
    assert first.warm_start_cpu_seconds == second.warm_start_cpu_seconds > 0
    for name, weight in first.weights.items():
        assert torch.equal(weight, second.weights[name])
        assert torch.equal(weight, again.weights[name])
    assert any((weight != other.weights[name]).any() for name, weight in first.weights.items())
    fresh = first.fresh_model().state_dict()
    assert any((weight != fresh[name]).any() for name, weight in first.weights.items())
    assert first.model() is not first.model()


# --- runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reinforce", "ppo", "nlpo", "dqn", "expert_iteration", *PEERS])
def test_a_learner_spends_the_budget_and_is_judged(tiny_ladder, monkeypatch, name):
    trl_or_skip(name)
    monkeypatch.setitem(trial.RUNGS, "Reverse", RUNG)
    line = json.loads(json.dumps(run(Job("Reverse", name, 1))))
    assert "error" not in line, line["error"]
    assert set(line) == LINE
    assert 300 <= line["tokens"] <= 300 + 32 * 3  # and what the last rollout runs over
    assert line["tokens"] / 3 <= line["episodes"] <= line["tokens"]
    assert line["normalised"] == line["score"]
    assert line["kl_per_sequence"] != 0
    assert len(line["samples"]) == 3
    tokens = [point["tokens"] for point in line["curve"]]
    assert tokens[0] == 0
    assert tokens[-1] == line["tokens"]
    assert sorted(tokens) == tokens
    # The judge is the same, and so are the weights they start from.
    untrained = make_start(setup("Reverse"), 1)
    policy = TextPolicy(untrained.model(), untrained.mdp.tokenizer.vocab_size)
    if name != "dqn":  # it acts on its Q, which starts at 0
        assert line["curve"][0]["score"] == pytest.approx(Examinee(untrained).score(policy, "validation"))


@pytest.mark.parametrize("name", ["ppo", "sb3_ppo", "trl_ppo"])
def test_the_same_seed_gives_the_same_line(tiny_ladder, name):
    trl_or_skip(name)
    first, again, other = (run(Job("Reverse", name, seed, budget=0.3)) for seed in (2, 2, 3))
    assert "error" not in first
    assert without_times(first) == without_times(again)
    assert without_times(first)["curve"] != without_times(other)["curve"]


def test_the_supervised_baseline_starts_from_fresh_weights_and_reads_the_references(start, monkeypatch):
    line = run(Job("Reverse", "supervised", 1, budget=0.1))
    references = len(start.mdp.prompts)
    assert line["curve"][0]["tokens"] == 0
    assert line["episodes"] == pytest.approx(2 * references, abs=32)
    assert line["tokens"] == pytest.approx(3 * line["episodes"])
    assert line["preset"]["epochs"] == 2


def test_best_of_n_is_what_evaluate_says_and_counts_all_that_it_draws(start):
    line = run(Job("Reverse", "best_of_n", 1))
    agent = TextAlgorithm(start.model(), setup("Reverse").make_env(1), device="cpu")
    held_out = on_split(start.mdp, "test")
    found = evaluate(agent, held_out, num_prompts=len(held_out.prompts), best_of=16)
    assert line["score"] == pytest.approx(found.mean)
    assert [sample["completion"] for sample in line["samples"]] == [sample.completion for sample in found.samples[:3]]
    assert line["episodes"] == 16 * len(held_out.prompts)
    assert line["tokens"] > 16 * len(held_out.prompts)
    assert line["score"] > best_of(agent, held_out, 1)["score"]


def test_without_a_warm_start_there_is_no_kl_and_without_a_rung_no_scale(tiny_ladder, monkeypatch):
    monkeypatch.delitem(trial.RUNGS, "DelayedBit", raising=False)
    line = run(Job("DelayedBit", "reinforce", 0))
    assert line["kl_per_sequence"] is None
    assert line["normalised"] is line["optimum"] is line["random"] is line["solved_at"] is None


def test_a_run_that_fails_is_a_line_with_its_traceback(tiny_ladder, monkeypatch):
    monkeypatch.setattr(trial, "_measured", lambda *args: 1 / 0)
    line = run(Job("Reverse", "ppo", 5))
    assert (line["task"], line["contender"], line["seed"]) == ("Reverse", "ppo", 5)
    assert "ZeroDivisionError" in line["error"]


def test_looks_cost_the_learner_nothing():
    watch = Watch(lambda policy: float(sum(range(2_000_000)) > 0), tokens=100, normalised=lambda score: score / 2)
    with watch:
        for tokens in range(0, 101, 5):
            assert watch.due(tokens)
            watch.look(None, tokens, tokens)
    assert watch.cpu_seconds < 0.05
    assert not watch.due(104)
    assert watch.solved_at(0.5) == {name: watch.curve[0][name] for name in ("tokens", "episodes", "cpu_seconds")}
    assert watch.solved_at(0.6) is None


def test_looks_are_at_few_prompts_from_everywhere_and_the_end_at_all(start, monkeypatch):
    monkeypatch.setattr(trial, "LOOK_PROMPTS", 2)
    validation, test = (on_split(start.mdp, split).prompts for split in ("validation", "test"))
    assert len(validation) > 2
    looked = Examinee(start)._splits
    assert 1 <= len(looked["validation"].prompts) <= 2
    assert all(prompt in validation for prompt in looked["validation"].prompts)
    assert looked["test"].prompts == test


# --- a reward that learns, and logged data ----------------------------------------------------------------


def under_another_reward(mdp, seed):
    return mdp.with_reward(lambda completions, **_: [1.0] * len(completions)), []


def logged(mdp, seed):
    return reference_episodes(mdp)


def test_a_trainer_hands_our_agents_their_rules_and_refuses_peers(tiny_ladder, start):
    taught = {**json.loads((tiny_ladder / "tasks.json").read_text())["Reverse"]}
    taught["trainer"] = f"{__name__}:under_another_reward"
    (tiny_ladder / "tasks.json").write_text(json.dumps({"Reverse": taught}))
    line = run(Job("Reverse", "reinforce", 0))
    assert line["score"] < 1  # judged by the task's own reward still
    with pytest.raises(ValueError, match="sb3_ppo cannot learn Reverse"):
        find_contender("sb3_ppo").check(setup("Reverse"))


def test_offline_learners_need_logged_data(tiny_ladder):
    (presets._FOLDER / "ilql.json").write_text(json.dumps({"defaults": {"episodes_per_rollout": 32}, "tasks": {}}))
    with pytest.raises(ValueError, match="ilql learns from logged episodes"):
        find_contender("ilql").check(setup("Reverse"))
    given = json.loads((tiny_ladder / "tasks.json").read_text())["Reverse"]
    given["logged"] = f"{__name__}:logged"
    (tiny_ladder / "tasks.json").write_text(json.dumps({"Reverse": given}))
    assert run(Job("Reverse", "ilql", 0))["tokens"] >= 300


def test_q_values_start_from_demonstrations_where_the_others_start_warm(tiny_ladder, monkeypatch):
    """A soft Q-learner starts warm itself: its policy is the language model."""
    given = []
    monkeypatch.setattr(DQN, "set_demonstrations", lambda self, episodes: given.append(episodes))
    assert "error" not in run(Job("DelayedBit", "dqn", 0))
    assert given == []
    assert "error" not in run(Job("Reverse", "dqn", 0))
    [episodes] = given
    assert episodes.returns_B.tolist() == [1.0] * len(setup("Reverse").make_env(1).mdp.prompts)
    soft = {**json.loads((presets._FOLDER / "dqn.json").read_text())["defaults"], "kl_coef_per_sequence": 0.1}
    (presets._FOLDER / "dqn.json").write_text(json.dumps({"defaults": soft, "tasks": {}}))
    assert "error" not in run(Job("Reverse", "dqn", 0))
    assert len(given) == 1


# --- other libraries --------------------------------------------------------------------------------------


def test_sb3s_policy_is_the_start_and_its_export_says_the_same(start):
    agent = make_ppo(start, find_contender("sb3_ppo").options(start.setup))
    observations, _ = agent.env.vector_env.reset(seed=0)
    shown = agent.policy.obs_to_tensor(observations)[0]
    lengths = shown["attention_mask"].sum(-1).long()
    select = torch.arange(len(lengths)) * shown["input_ids"].shape[1] + lengths - 1
    positions = torch.arange(shown["input_ids"].shape[1]).expand(len(lengths), -1)

    @torch.no_grad()
    def of(policy):
        return torch.log_softmax(policy(shown["input_ids"].long(), positions, select)[0], -1)

    @torch.no_grad()
    def sb3s():
        return agent.policy.get_distribution(shown).distribution.logits

    theirs = sb3s()
    torch.testing.assert_close(theirs, of(TextPolicy(start.model(), theirs.shape[1])), atol=1e-5, rtol=0)
    agent.learn(150)
    trained = sb3s()
    torch.testing.assert_close(trained, of(as_text_policy(agent.policy, start.model())), atol=1e-5, rtol=0)
    assert (trained - theirs).abs().max() > 1e-3
    headless = copy.deepcopy(as_text_policy(agent.policy, start.model()))
    headless.model.lm_head.bias.data.zero_()  # an export that forgets the action layer's bias is seen
    assert (trained - of(headless)).abs().max() > 1e-4


def test_trls_reward_function_is_the_environments(start):
    mdp = start.mdp
    answers = [mdp.oracle_completion(index).token_ids for index in range(4)]
    scorer = Scorer(mdp)
    assert scorer(completion_ids=answers, index=[0, 1, 2, 3], prompts=None) == [1.0] * 4
    assert scorer(completion_ids=answers, index=[1, 2, 3, 0]) != [1.0] * 4
    assert (scorer.tokens, scorer.episodes) == (2 * 4 * 3, 8)


def test_trl_gets_the_prompts_as_the_environment_shows_them(start):
    mdp = start.mdp
    assert prompt_texts(mdp) == [prompt.text for prompt in mdp.prompts]
    short = TextMDP(mdp.task, tokenizer=mdp.tokenizer, max_prompt_tokens=2)
    with pytest.warns(UserWarning, match="is cut"):
        texts = prompt_texts(short)
    assert [mdp.tokenizer.hf.encode(text) for text in texts] == [
        mdp.prompt_ids(i)[-2:].tolist() for i in range(len(texts))
    ]


def test_trls_ppo_reads_the_environments_score_at_the_last_token(start):
    utils = pytest.importorskip("trl.experimental.utils", reason="pip install 'textgen-env[peers]'")
    mdp, pad = start.mdp, start.mdp.tokenizer.pad_id
    collator, scorer = Collator(mdp), Scorer(mdp)
    queries = collator([{"index": index} for index in (5, 2, 0)])["input_ids"]
    right, cut = mdp.oracle_completion(5).token_ids, mdp.oracle_completion(2).token_ids
    responses = torch.tensor([right, (*cut[:1], pad, pad), (pad, pad, pad)])
    texts = torch.cat([queries, responses], 1)
    _, scores, _ = utils.get_reward(EnvironmentAsRewardModel(scorer, collator), texts, pad, queries.shape[1])
    expected = mdp.returns(
        [mdp.complete(5, right, "eos"), mdp.complete(2, cut[:1], "length"), mdp.complete(0, [pad], "length")]
    )
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert scores[0] == 1
    assert scorer.tokens == 3 + 1 + 1


def test_what_a_peer_lacks_is_said_before_anything_runs(start, monkeypatch):
    monkeypatch.setattr(contenders_trl, "_installed", lambda module: not module.startswith("trl"))
    for name in PEERS[1:]:
        with pytest.raises(ImportError, match=r"pip install 'textgen-env\[peers\]'"):
            find_contender(name).check(start.setup)
    find_contender("sb3_ppo").check(start.setup)
