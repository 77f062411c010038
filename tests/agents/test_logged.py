"""Logged completions become the episodes that the environment would have reported."""

import json

import numpy as np
import pytest
import torch

from agents.logged import logged_episodes, read_logged, reference_episodes
from agents.policy import TextPolicy
from agents.rollout import Collector
from tests.agents.conftest import PROMPTS, gpt2_config, make_env, make_mdp, make_policy, word_tokenizer
from textgen_env import TextMDP, TextTask, dense

EOS, A, B = 1, 2, 3


@dense
def a_each(completion_ids, **_):
    """A point for every a, paid at once; a little for being late."""
    return [[float(token == A) + 0.01 * t for t, token in enumerate(ids)] for ids in completion_ids]


def no_repeats(prompt, actions, tokenizer):
    return [token for token in range(tokenizer.vocab_size) if token not in actions[-1:]]


@pytest.mark.parametrize("kwargs", [{}, {"reward": a_each}, {"allowed_tokens": no_repeats}])
def test_a_rollout_logged_again_is_the_rollout(kwargs):
    mdp = make_mdp(**kwargs)
    collector = Collector(make_env(5, mdp=mdp), make_policy(vocab_size=8, dtype=torch.float32), seed=0)
    order = [0, 3, 1, 5, 4, 2]
    played = collector.collect(12, samples_per_prompt=2, prompt_indices=order)
    ids = [completion.token_ids for completion in played.completions]
    logged = logged_episodes(mdp, np.repeat(order, 2).tolist(), ids)
    for name in ("input_ids_BS", "prompt_lengths_B", "action_mask_BT", "rewards_BT", "bootstrap_values_B"):
        assert torch.equal(getattr(logged, name), getattr(played, name)), name
    if mdp.allowed_tokens is None:
        assert logged.allowed_BTV is None
    else:
        mask = logged.action_mask_BT
        assert torch.equal(logged.allowed_BTV[mask], played.allowed_BTV[mask])
        assert not logged.allowed_BTV[mask].all()
    for info, expected in zip(logged.infos, played.infos, strict=True):
        assert {key: info[key] for key in ("text", "stop_reason", "reward", "completion")} == {
            key: expected[key] for key in ("text", "stop_reason", "reward", "completion")
        }
    assert not logged.log_probs_BT.any()
    assert not logged.values_BT.any()
    same_prompt = torch.tensor(order).repeat_interleave(2)
    assert torch.equal(logged.prompt_groups_B[:, None] == logged.prompt_groups_B, same_prompt[:, None] == same_prompt)


@pytest.mark.parametrize(
    ("completion", "tokens", "stop"),
    [
        ("a b", [A, B, EOS], "eos"),
        ([A, B], [A, B, EOS], "eos"),
        ([A, B, EOS], [A, B, EOS], "eos"),
        ([EOS], [EOS], "eos"),
        ([], [EOS], "eos"),
        ("a b a b a b", [A, B] * 3, "length"),  # six are the cap
        ([A] * 5 + [EOS], [A] * 5 + [EOS], "eos"),
    ],
)
def test_an_eos_is_put_where_there_is_room(completion, tokens, stop):
    episodes = logged_episodes(make_mdp(), ["b c d e"], [completion])
    assert episodes.input_ids_BS[0, 4 : 4 + len(tokens)].tolist() == tokens
    assert episodes.num_tokens == len(tokens)
    assert episodes.infos[0]["stop_reason"] == stop


def test_rewards_of_ones_own():
    mdp = make_mdp()
    totals = logged_episodes(mdp, [0, 0], ["a b", "a"], [2.0, -1.0])
    assert totals.rewards_BT.tolist() == [[0.0, 0.0, 2.0], [0.0, -1.0, 0.0]]
    assert "reward" not in totals.infos[0]  # the environment's reward was not asked
    shares = logged_episodes(mdp, [0, 0], ["a b", [A, EOS]], [[1.0, 2.0], [3.0, 4.0]])
    assert shares.rewards_BT.tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]


def test_references_are_episodes():
    task = TextTask.from_pairs({"train": [("a", ["a b", "c"]), ("b", None), ("c", "a a a a")]}, name="refs")
    mdp = TextMDP(task, lambda completions: [float(len(text)) for text in completions], word_tokenizer("a b c"))
    episodes = reference_episodes(mdp)
    assert [info["text"] for info in episodes.infos] == ["a b", "c", "a a a a"]
    assert episodes.returns_B.tolist() == [3.0, 1.0, 7.0]
    assert episodes.prompt_groups_B.tolist() == [0, 0, 1]
    short = TextMDP(task, mdp.reward, mdp.tokenizer, max_new_tokens=2)
    with pytest.warns(UserWarning, match="1 of 3 references are longer than max_new_tokens=2"):
        assert len(reference_episodes(short)) == 2


def test_a_policy_can_score_them():
    from transformers import AutoModelForCausalLM

    mdp = make_mdp()
    policy = TextPolicy(AutoModelForCausalLM.from_config(gpt2_config()), 8)
    log_probs, *_ = policy.score(logged_episodes(mdp, PROMPTS, ["a b c"] * len(PROMPTS)))
    assert (log_probs.detach()[:, :4] < 0).all()


@pytest.mark.parametrize(
    ("prompts", "completions", "rewards", "message"),
    [
        ([], [], None, "no episodes"),
        ([0], ["a", "b"], None, "1 prompts and 2 completions"),
        ([0], ["a"], [1.0, 2.0], "and 2 rewards"),
        ([99], ["a"], None, "99 is out of range: the split has 6"),
        (["b c d"], ["a"], None, "no prompt of split 'train'; did you mean 'b c d e'"),
        ([0], [[A, 8]], None, "id 8, outside the vocabulary of 8"),
        ([0], [[A, EOS, B]], None, "goes on after an EOS"),
        ([0], ["a b c d e f a"], None, "7 tokens, more than max_new_tokens=6"),
        ([0], ["a b"], [[1.0]], "no reward for each of 3 tokens"),
        ([0], ["a b"], [float("nan")], "not finite"),
    ],
)
def test_what_cannot_have_happened_is_refused(prompts, completions, rewards, message):
    with pytest.raises(ValueError, match=message):
        logged_episodes(make_mdp(), prompts, completions, rewards)


def test_what_was_not_allowed_is_refused():
    with pytest.raises(ValueError, match=r"completion 1 has token 2 \('a'\) where the environment does not allow it"):
        logged_episodes(make_mdp(allowed_tokens=no_repeats), [0, 0], ["a b", "a a"])
    task = TextTask.from_pairs({"train": [("a", None)]}, name="bare")
    with pytest.raises(ValueError, match="has no references to learn from"):
        reference_episodes(TextMDP(task, lambda completions: [0.0] * len(completions), word_tokenizer("a")))


# --- from a file ------------------------------------------------------------------------------------------


def two_splits():
    """The small world with one prompt held out."""
    task = TextTask.from_pairs({"train": [("a", "a b"), ("b c", "a b")], "test": [("d", "a b")]}, name="letters")
    return TextMDP(task, lambda completions: [1.0] * len(completions), word_tokenizer("a b c d"), max_new_tokens=6)


def written(tmp_path, *records):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_file_is_read_as_its_records_say(tmp_path):
    mdp = two_splits()
    path = written(
        tmp_path, {"prompt": "b c", "completion": "a a", "reward": 2}, {"prompt": "a", "completion": "b", "reward": -1}
    )
    found = read_logged(path, mdp)
    expected = logged_episodes(mdp, [1, 0], ["a a", "b"], [2.0, -1.0])
    assert torch.equal(found.input_ids_BS, expected.input_ids_BS)
    assert found.returns_B.tolist() == [2.0, -1.0]
    scored = read_logged(written(tmp_path, {"prompt": "a", "completion": "b"}), mdp)
    assert scored.returns_B.tolist() == [1.0]  # by the environment


def test_held_out_prompts_are_not_learned_from(tmp_path):
    path = written(tmp_path, {"prompt": "d", "completion": "a"}, {"prompt": "a", "completion": "b"})
    with pytest.warns(UserWarning, match="1 of 2 records are of prompts outside split 'train'"):
        found = read_logged(path, two_splits())
    assert [info["prompt"] for info in found.infos] == ["a"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"promt": "a", "completion": "b"}], "line 1: no field 'prompt'; did you mean 'promt'"),
        ([{"prompt": "a", "completion": 3}], "line 1, field 'completion': expected a text, got int"),
        ([{"prompt": "e e", "completion": "b"}], "line 1: 'e e' is no prompt of task 'letters'"),
        ([{"prompt": "a", "completion": "b", "reward": "1"}], "line 1, field 'reward': expected a number"),
        (
            [{"prompt": "a", "completion": "b", "reward": 1}, {"prompt": "a", "completion": "b"}],
            "line 2: give every record a reward, or none",
        ),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "reward": 1}],
            "line 2: give every record a reward, or none",
        ),
        ([{"prompt": "d", "completion": "b"}], "no record's prompt is in split 'train'"),
    ],
)
def test_a_bad_record_is_named(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        read_logged(written(tmp_path, *records), two_splits())
