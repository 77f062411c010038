import gymnasium as gym
import numpy as np
import pytest

import textgen_env  # noqa: F401
from agents.evaluation import on_split
from agents.multitask.words import InSharedWords, share_tokenizer, shared_words
from tests.agents.conftest import make_mdp
from textgen_env import TextGenVectorEnv, TextMDP, TextTask, TextTokenizer


def game(name, **kwargs):
    return gym.make_vec(f"textgen_env/{name}-v0", num_envs=1, **kwargs).unwrapped.mdp


@pytest.fixture(scope="module")
def both():
    return share_tokenizer({"Reverse": game("Reverse"), "Add": game("Add")})


def test_the_vocabulary_has_the_words_of_all(both):
    shared = both["Reverse"].tokenizer.hf.get_vocab()
    assert both["Add"].tokenizer.hf.get_vocab() == shared
    own = [mdp.own.tokenizer.hf.get_vocab() for mdp in both.values()]
    assert set(shared) == set(own[0]) | set(own[1])
    assert own[1]["7"] != shared["7"]  # else the next test would prove nothing


@pytest.mark.parametrize("name", ["Reverse", "Add"])
def test_the_oracle_still_earns_the_optimum(both, name):
    mdp = both[name]
    assert mdp.optimal_return(range(20)) == mdp.own.optimal_return(range(20)) == 1


def test_ids_of_the_shared_vocabulary_would_be_judged_wrong(both):
    """Must fail: the same answers, handed to the task's rules without translation."""
    mdp = both["Add"]
    text = mdp.prompts[5].references[0]
    ids = mdp.tokenizer.encode_completion(mdp.prompts[5].text, text).tolist()
    assert mdp.returns([mdp.complete(5, ids, "eos")])[0] == 1
    with pytest.raises(ValueError, match="token"):
        mdp.own.returns([mdp.own.complete(5, [max(ids) + 9], "eos")])


def test_prompts_say_the_same(both):
    for mdp in both.values():
        assert mdp.tokenizer.decode(mdp.prompt_ids(3)) == mdp.prompts[3].text


def test_only_the_tasks_own_words_are_allowed(both):
    for mdp in both.values():
        mask = mdp.action_mask(0, [])
        allowed = {word for word, id in mdp.tokenizer.hf.get_vocab().items() if mask[id]}
        assert allowed == set(mdp.own.tokenizer.hf.get_vocab())


def test_what_the_task_forbids_stays_forbidden():
    mdps = share_tokenizer({"Reverse": game("Reverse", task_kwargs={"mask": True}), "Add": game("Add")})
    mask = mdps["Reverse"].action_mask(0, [])
    words = {word for word, id in mdps["Reverse"].tokenizer.hf.get_vocab().items() if mask[id]}
    assert words == {*"abcdefgh", "<eos>"}


def test_a_foreign_word_counts_as_padding(both):
    mdp = both["Reverse"]
    foreign = mdp.tokenizer.hf.get_vocab()["+"]
    assert mdp.complete(0, [foreign], None).token_ids == (mdp.own.tokenizer.pad_id,)


def test_an_episode_pays_what_the_own_game_pays(both):
    """Random answers, step by step in both vocabularies."""
    mdp = both["Add"]
    own, shared = mdp.own.tokenizer.hf.get_vocab(), mdp.tokenizer.hf.get_vocab()
    words = list(own)
    envs = [TextGenVectorEnv(8, mdp=each, autoreset_mode="Disabled") for each in (mdp.own, mdp)]
    generator = np.random.default_rng(0)
    chosen = generator.integers(len(mdp.prompts), size=8)
    for env in envs:
        env.reset(seed=0, options={"prompt_index": chosen})
    for _ in range(mdp.max_new_tokens):
        drawn = [words[index] for index in generator.integers(len(words), size=8)]
        steps = [
            env.step(np.array([ids[word] for word in drawn])) for env, ids in zip(envs, (own, shared), strict=True)
        ]
        assert (steps[0][1] == steps[1][1]).all()
        assert (steps[0][2] == steps[1][2]).all()


def test_marks_stand_before_prompts():
    mdps = {name: game(name) for name in ("Reverse", "Copy")}
    with pytest.raises(ValueError, match=r"'Reverse' and 'Copy' both ask 'a a a ='.*--mark-tasks"):
        share_tokenizer(mdps)
    marked = share_tokenizer(mdps, mark=True)
    for name, mdp in marked.items():
        ids = mdp.prompt_ids(0)
        assert mdp.tokenizer.hf.convert_ids_to_tokens(int(ids[0])) == f"<{name}>"
        assert len(ids) == len(mdp.own.prompt_ids(0)) + 1 <= mdp.max_prompt_tokens
    assert marked["Copy"].tokenizer.hf.get_vocab() == marked["Reverse"].tokenizer.hf.get_vocab()


def test_splits_keep_the_rules(both):
    held_out = on_split(both["Add"], "test")
    assert isinstance(held_out, InSharedWords)
    assert held_out.split == "test"
    assert held_out.optimal_return(range(5)) == 1
    assert held_out.observation_space == both["Add"].observation_space


def free(name, prompts):
    task = TextTask.from_pairs({"train": [(prompt, "yes") for prompt in prompts]}, name=name)
    return TextMDP(task, lambda completions: [0.0] * len(completions))


def test_free_text_shares_a_tokenizer_trained_on_all():
    mdps = share_tokenizer({"one": free("one", ["what now"]), "two": free("two", ["who else", "why"])}, vocab_size=300)
    assert mdps["one"].tokenizer is mdps["two"].tokenizer
    assert mdps["two"].max_prompt_tokens >= 1
    given = TextTokenizer(mdps["one"].tokenizer.hf)
    assert share_tokenizer(mdps, tokenizer=given) == mdps  # they speak it already


def test_what_one_policy_cannot_speak_is_refused():
    words, text = game("Reverse"), free("text", ["what"])
    with pytest.raises(ValueError, match="'Reverse' have words of their own, 'text' are free text"):
        share_tokenizer({"Reverse": words, "text": text})
    with pytest.raises(ValueError, match="the model has a tokenizer of its own"):
        share_tokenizer({"Reverse": words}, tokenizer=text.tokenizer)
    with pytest.raises(ValueError, match="marks are words"):
        share_tokenizer({"text": text}, mark=True)
    with pytest.raises(ValueError, match="has the word '<pad>', the shared vocabulary has not"):
        InSharedWords(words, text.tokenizer)


def test_one_vocabulary_alone_is_left_as_it_is():
    mdp = game("Reverse")
    (alone,) = shared_words({"Reverse": mdp}).values()
    assert alone.allowed_tokens is None  # nothing to forbid: no masks to carry
    assert make_mdp().allowed_tokens is None
