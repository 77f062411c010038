"""What a game takes from its task, and what its optimum is worth."""

from dataclasses import replace

import numpy as np
import pytest

from textgen_env import TextGenEnv, TextMDP, TextTask, dense, word_tokenizer

EOS, A, B, C = 1, 2, 3, 4


def words(completions, **_):
    return [float(len(text.split())) for text in completions]


def token_values(completion_ids):
    return [[token / 10 for token in ids] for ids in completion_ids]


@dense
def changing_its_mind(completion_ids):
    """Says 9 of every token but the newest, which alone is paid."""
    return [[*[9.0] * (len(ids) - 1), ids[-1] / 10] for ids in completion_ids]


def echo(prompt):
    return prompt.text


TASK = TextTask(
    "echo",
    TextTask.from_pairs({"train": ["a b", "c", "a b c"], "test": ["c b"]}).splits,
    vocabulary=("a", "b", "c"),
    max_new_tokens=3,
    reward=words,
    oracle=echo,
)
PLAIN = TextTask("plain", TASK.splits)


# What the task gives


def test_the_task_gives_what_is_not_said():
    mdp = TextMDP(TASK)
    assert mdp.tokenizer.hf is word_tokenizer(("a", "b", "c"))
    assert (mdp.max_new_tokens, mdp.reward.function) == (3, words)
    assert mdp.prompt_ids(0).tolist() == [A, B]


def test_what_is_said_holds():
    tokenizer = word_tokenizer(("c", "b", "a"))
    mdp = TextMDP(TASK, token_values, tokenizer, max_new_tokens=7)
    assert (mdp.reward.function, mdp.tokenizer.hf, mdp.max_new_tokens) == (token_values, tokenizer, 7)
    assert mdp.prompt_ids(0).tolist() == [C, B]


def test_a_plain_task_gives_nothing():
    mdp = TextMDP(PLAIN, words, vocab_size=300)
    assert (mdp.max_new_tokens, mdp.allowed_tokens) == (32, None)
    assert mdp.tokenizer.vocab_size >= 258
    with pytest.raises(ValueError, match="task 'plain' brings no reward: pass reward="):
        TextMDP(PLAIN)


def test_a_vocabulary_has_its_size():
    with pytest.raises(ValueError, match="vocab_size has no effect here, task 'echo' has a vocabulary of its own"):
        TextMDP(TASK, vocab_size=300)


def test_a_prompt_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="the vocabulary has no word 'c', found in 'c'"):
        TextMDP(replace(TASK, vocabulary=("a", "b")))


# The optimum


def test_oracle_completions():
    mdp = TextMDP(TASK)
    found = [mdp.oracle_completion(index) for index in range(3)]
    assert [(completion.token_ids, completion.stop_reason) for completion in found] == [
        ((A, B, EOS), "eos"),
        ((C, EOS), "eos"),
        ((A, B, C), "length"),  # the cap ends it before its EOS
    ]
    assert [completion.text for completion in found] == [prompt.text for prompt in mdp.prompts]
    with pytest.raises(ValueError, match="has 3 tokens: max_new_tokens=2 leaves no room for it"):
        TextMDP(TASK, max_new_tokens=2).oracle_completion(2)


def test_optimal_return_is_a_mean_over_the_split():
    assert TextMDP(TASK).optimal_return() == 2.0
    assert TextMDP(TASK).optimal_return([0, 2]) == 2.5
    assert TextMDP(TASK, split="test").optimal_return() == 2.0
    with pytest.raises(ValueError, match="prompt_indices is empty"):
        TextMDP(TASK).optimal_return([])


def test_no_oracle_no_optimum():
    with pytest.raises(ValueError, match="task 'plain' has no oracle: its optimum is not known"):
        TextMDP(PLAIN, words, vocab_size=300).optimal_return()


@pytest.mark.parametrize("reward", [words, token_values, changing_its_mind])
@pytest.mark.parametrize("ids", [(A, B, C), (A, EOS), (EOS,)])
def test_returns_are_what_the_environment_pays(reward, ids):
    env = TextGenEnv(task=TASK, reward=reward)
    env.reset(options={"prompt_index": 1})
    paid = [env.step(token) for token in ids]
    assert paid[-1][2]
    mdp = env.mdp
    finished = [mdp.complete(1, ids, "eos" if ids[-1] == EOS else "length"), mdp.oracle_completion(0)]
    returns = mdp.returns(finished)
    assert returns.shape == (2,)
    assert returns.dtype == np.float64
    assert returns[0] == pytest.approx(sum(step[1] for step in paid))
    assert returns[0] == mdp.returns(finished[:1])[0]


def test_the_last_answer_is_not_what_a_dense_reward_pays():
    """Must fail: were the reward's answers consistent, the test above could not tell one from the other."""
    mdp = TextMDP(TASK, changing_its_mind)
    completion = mdp.oracle_completion(2)
    assert mdp.score([completion]).totals.tolist() == pytest.approx([18.4])
    assert mdp.returns([completion]).tolist() == pytest.approx([0.9])


# The same rules, but for one thing


def test_another_reward_shares_the_encoded_prompts():
    mdp = TextMDP(TASK)
    other = mdp.with_reward(token_values)
    assert (other.reward.function, mdp.reward.function) == (token_values, words)
    assert other.prompt_ids(0) is mdp.prompt_ids(0)


def test_another_split_keeps_reward_tokenizer_and_room():
    mdp = TextMDP(TASK, token_values, max_prompt_tokens=5)
    held_out = mdp.on_split("test")
    assert [prompt.text for prompt in held_out.prompts] == ["c b"]
    assert (held_out.reward, held_out.tokenizer, held_out.max_prompt_tokens) == (mdp.reward, mdp.tokenizer, 5)
    assert held_out.prompt_ids(0).tolist() == [C, B]
    assert mdp.prompt_ids(0).tolist() == [A, B]
    with pytest.raises(ValueError, match="tset"):
        mdp.on_split("tset")


def test_another_tokenizer_counts_anew():
    mdp = TextMDP(PLAIN, words, word_tokenizer(("a", "b", "c")), max_new_tokens=4, truncation_side="right")
    assert mdp.with_tokenizer(mdp.tokenizer) is mdp
    spelt = mdp.with_tokenizer(word_tokenizer(("c", "b", "a")))
    assert spelt.prompt_ids(0).tolist() == [C, B]
    assert (spelt.max_new_tokens, spelt.truncation_side, spelt.reward) == (4, "right", mdp.reward)
