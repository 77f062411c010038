import itertools

import numpy as np
import pytest
import torch

from agents import PPO, REINFORCE, small_gpt2
from agents.adversarial import DiscriminatorCallback, corpus
from reward_models.discriminator import Discriminator, DiscriminatorConfig
from textgen_env import TextGenVectorEnv, TextMDP, TextTask, TextTokenizer
from textgen_env.tasks.match_corpus import markov_oracle, match_corpus
from textgen_env.tokenizer import word_tokenizer

TASK = {"words": 3, "steps": 3, "sharpness": 2.5, "intricate": 0, "loyalty": 0.0}


def make(algorithm=REINFORCE, **options):
    task = match_corpus(**TASK, texts_per_prompt=100, mask=True)
    tokenizer = TextTokenizer(word_tokenizer(task.vocabulary))
    size = {"positions": 5, "layers": 1, "heads": 2}
    judge = Discriminator(
        tokenizer,
        small_gpt2(tokenizer, width=16, **size),
        DiscriminatorConfig(learning_rate=1e-2, weight_decay=0.01, batch_size=64),
        device="cpu",
    )
    env = TextGenVectorEnv(32, mdp=TextMDP(task, judge, tokenizer))
    settings = {"learning_rate": 1e-2, "samples_per_prompt": 4, "episodes_per_rollout": 64, **options}
    agent = algorithm(small_gpt2(tokenizer, width=8, **size), env, seed=0, device="cpu", **settings)
    return agent, judge


def divergence(agent):
    """KL(q‖p) of the policy from the chain, exact: every text of every training prompt."""
    mdp, oracle = agent._mdp, markov_oracle(**TASK)
    total = 0.0
    texts = torch.tensor(list(itertools.product(range(2, 5), repeat=TASK["steps"])))
    count, steps = texts.shape
    allowed = torch.zeros(count, steps, mdp.tokenizer.vocab_size, dtype=torch.bool)
    allowed[..., 2:] = True
    for prompt in mdp.prompts:
        context = prompt.metadata["context_ids"]
        ids = torch.cat([torch.tensor(context).expand(count, -1), texts], dim=-1)
        mask = torch.ones(count, steps, dtype=torch.bool)
        with torch.no_grad():
            found = agent.policy.score_actions(ids, torch.full((count,), 2), mask, allowed_BTV=allowed)
        log_q = found[0].sum(-1).double().numpy()
        log_p = np.array([oracle.log_prob(context, text).sum() for text in texts.tolist()])
        total += float(np.exp(log_q) @ (log_q - log_p))
    return total / len(mdp.prompts)


def learn(agent, judge, tokens=64 * 3 * 30, reset=True, **options):
    callback = DiscriminatorCallback(judge, **{"warmup_steps": 60, "warmup_episodes": 512, **options})
    # log_interval: more than there are rollouts, so that the log is kept
    agent.learn(tokens, callback=callback, log_interval=100, reset_num_timesteps=reset)


def test_it_brings_the_policy_nearer_to_the_corpus():
    agent, judge = make(kl_coef_per_sequence=0.02)
    before = divergence(agent)
    learn(agent, judge)
    assert before > 1.5
    assert divergence(agent) < 0.75 * before

    twin, untaught = make(kl_coef_per_sequence=0.02)  # must fail: the discriminator stays as it was made
    twin.learn(64 * 3 * 30)
    assert untaught.steps == 0
    assert divergence(twin) > 0.95 * before


def test_a_rollout_is_scored_before_it_is_learned_from():
    agent, judge = make()
    seen = []
    fit = judge.fit

    def spy(real, fake, steps):
        seen.append((judge.steps, judge.rewards(fake, judge.centre), real, fake, steps))
        return fit(real, fake, steps)

    judge.fit = spy
    rollouts = []
    callback = DiscriminatorCallback(judge, steps=2, warmup_steps=5, warmup_episodes=64)
    callback_end = callback._on_rollout_end

    def keep():
        rollouts.append(callback.locals["trajectories"])
        callback_end()

    callback._on_rollout_end = keep
    agent.learn(64 * 3 * 2, callback=callback)
    assert [(before, steps) for before, *_, steps in seen] == [(0, 5), (5, 2), (7, 2)]
    for (_, paid, real, fake, _), rollout in zip(seen[1:], rollouts, strict=True):
        assert torch.tensor(paid) == pytest.approx(rollout.rewards_BT.numpy(), abs=1e-5)
        assert [ids for _, ids in fake] == [completion.token_ids for completion in rollout.completions]
        assert [prompt for prompt, _ in real] == [prompt for prompt, _ in fake]
    texts = {tuple(ids) for of_prompt in corpus(agent._mdp) for _, ids in of_prompt}
    assert all(tuple(ids) in texts for *_, real, _, _ in seen for _, ids in real)


def test_what_is_logged_and_that_a_seed_repeats():
    def run():
        agent, judge = make(PPO, epochs=1)
        learn(agent, judge, tokens=64 * 3 * 2, warmup_steps=5)
        return torch.cat([weight.flatten() for weight in agent.policy.state_dict().values()]), agent

    first, agent = run()
    again, _ = run()
    assert torch.equal(first, again)
    logged = agent.logger.name_to_value
    names = ("loss", "accuracy_real", "accuracy_fake", "reward_fake", "grad_norm", "centre", "replay")
    assert [name for name in names if f"discriminator/{name}" not in logged] == []


def test_a_second_run_does_not_warm_up_again():
    agent, judge = make()
    learn(agent, judge, tokens=1, warmup_steps=5, steps=1)
    assert judge.steps == 6
    learn(agent, judge, tokens=1, warmup_steps=5, steps=1)
    assert judge.steps == 7


@pytest.mark.parametrize("algorithm", [REINFORCE, PPO])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(algorithm, tmp_path):
    rollout = 64 * 3

    def weights(agent, judge):
        values = [*agent.policy.state_dict().values(), *judge.model.state_dict().values()]
        return torch.cat([value.flatten() for value in values])

    steady = {"kl_coef_per_sequence": 0.02, "learning_rate_schedule": "constant"}  # a shorter total is no steeper
    whole, whole_judge = make(algorithm, **steady)
    learn(whole, whole_judge, tokens=4 * rollout, warmup_steps=5)

    cut, cut_judge = make(algorithm, **steady)
    learn(cut, cut_judge, tokens=2 * rollout, warmup_steps=5)
    cut.save(tmp_path / "agent.zip")

    def resumed(forget):
        other, judge = make(algorithm)
        agent = algorithm.load(tmp_path / "agent.zip", env=TextGenVectorEnv(32, mdp=other._mdp), device="cpu")
        assert (judge.steps, len(judge.replay)) == (cut_judge.steps, len(cut_judge.replay))
        forget(judge)
        learn(agent, judge, tokens=2 * rollout, warmup_steps=5, reset=False)
        return weights(agent, judge)

    expected = weights(whole, whole_judge)
    assert torch.equal(resumed(lambda judge: None), expected)
    # Must fail: the weights alone do not make it the same run.
    assert not torch.equal(resumed(lambda judge: judge.replay.items.clear()), expected)
    assert not torch.equal(resumed(lambda judge: judge.optimizer.state.clear()), expected)


def test_an_agent_saved_with_another_discriminator_starts_afresh_and_says_so(tmp_path):
    agent, judge = make()
    learn(agent, judge, tokens=1, warmup_steps=5, steps=1)
    agent.save(tmp_path / "agent.zip")
    tokenizer, task = judge.tokenizer, agent._mdp.task
    other = Discriminator(tokenizer, small_gpt2(tokenizer, positions=5, width=8, layers=1, heads=2), device="cpu")
    with pytest.warns(UserWarning, match=r"not restored: .* weights of other shapes"):
        REINFORCE.load(tmp_path / "agent.zip", env=TextGenVectorEnv(32, mdp=TextMDP(task, other, tokenizer)))
    assert other.steps == 0


def test_the_corpus_is_cut_as_an_episode_is():
    task = TextTask.from_pairs([("go", ["a b", "a", "b a b a"])], fractions=(1, 0, 0))
    mdp = TextMDP(task, lambda completions: [0.0], TextTokenizer(word_tokenizer(("go", "a", "b"))), max_new_tokens=3)
    assert corpus(mdp) == [[([2], [3, 4, 1]), ([2], [3, 1]), ([2], [4, 3, 4])]]


def test_errors_name_the_mend():
    agent, judge = make()
    silent = TextTask.from_pairs([("a b", None), ("a c", None)], fractions=(1, 0, 0))
    with pytest.raises(ValueError, match=r"prompt 'a b' has no references"):
        corpus(TextMDP(silent, judge, judge.tokenizer))
    with pytest.raises(ValueError, match="steps=0"):
        DiscriminatorCallback(judge, steps=0)
    _, other = make()
    with pytest.raises(ValueError, match="is not the environment's reward"):
        agent.learn(1, callback=DiscriminatorCallback(other, warmup_steps=0))
