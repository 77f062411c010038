"""Decoding in fixed shapes gives what the packed decoder gives, and lets the environment work beside the device."""

import copy
import warnings

import pytest
import torch

import agents.static_decoder
from agents import PPO
from agents.decoder import Decoder
from agents.model_source import load_model
from agents.policy import TextPolicy
from agents.rollout import Collector
from agents.static_decoder import StaticDecoder, decoder_for
from tests.agents.conftest import FAMILIES, VOCAB, gpt2_config, make_env, make_policy

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(scope="module")
def policy():
    policy = TextPolicy(load_model(gpt2_config(), 0), 8)
    with torch.no_grad():
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return policy


def collect(policy, kind, episodes=30, env=None, seed=0, **options):
    collector = Collector(make_env() if env is None else env, policy, seed=seed)
    collector.make_decoder = kind
    return collector.collect(episodes, **options)


def play(decoder, prompts, steps):
    """Greedy steps of all rows, after which the first restarts and the second stops; what the others then say."""
    decoder.start(decoder.free_slots(len(prompts)), prompts)
    seen = [decoder.act(None) for _ in range(steps)]
    decoder.start([0], [prompts[-1]])
    decoder.drop(len(prompts) - 1)
    return [*seen, *(decoder.act(None) for _ in range(steps))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_the_packed_decoder_says(family, device, monkeypatch):
    monkeypatch.setattr(agents.static_decoder, "_SHORTEST_SPAN", 4)  # several spans in a few tokens
    monkeypatch.setattr(agents.static_decoder, "_SHORTEST_PREFILL", 2)
    policy = make_policy(family, torch.float64 if device == "cpu" else torch.float32).to(device)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, VOCAB, (length,), generator=generator) for length in (7, 1, 4, 3)]
    packed, static = Decoder(policy, 4, 30), StaticDecoder(policy, 4, 30)
    static.clear()
    for first, second in zip(play(packed, prompts, 5), play(static, prompts, 5), strict=True):
        rows = len(first.actions_N)
        assert torch.equal(first.actions_N, second.actions_N[:rows])
        torch.testing.assert_close(first.log_probs_N, second.log_probs_N[:rows], rtol=0, atol=1e-4)
        torch.testing.assert_close(first.values_N, second.values_N[:rows], rtol=0, atol=1e-4)
    assert len({key[0] for key in static._token_steps}) > 1


def test_prompts_of_like_lengths_are_read_together():
    read = []
    decoder = StaticDecoder(make_policy(), 8, 40)
    decoder.clear()
    prefill = decoder._prefill
    decoder._prefill = lambda width, group: read.append((width, [row for row, _ in group])) or prefill(width, group)
    lengths = (1, 2, 17, 18, 5, 36)  # a token less is read: the last is fed by the first step
    prompts = [torch.full((length,), 2 + at) for at, length in enumerate(lengths)]
    decoder.start(list(range(8)), [*prompts, prompts[2].clone(), prompts[0].clone()])
    assert read == [(16, [1, 2, 4]), (32, [3]), (40, [5])]  # at most the capacity, and each prompt once
    logits, _ = decoder.step()
    torch.testing.assert_close(logits[2], logits[6])
    torch.testing.assert_close(logits[0], logits[7])


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_greedy_rollouts_are_the_same(policy, num_envs):
    packed = collect(policy, Decoder, 20, make_env(num_envs), greedy=True)
    static = collect(policy, StaticDecoder, 20, make_env(num_envs), greedy=True)
    assert torch.equal(packed.input_ids_BS, static.input_ids_BS)
    assert torch.equal(packed.rewards_BT, static.rewards_BT)
    for name in ("log_probs_BT", "values_BT"):
        torch.testing.assert_close(getattr(packed, name), getattr(static, name), rtol=0, atol=1e-5)
    assert [info["stop_reason"] for info in packed.infos] == [info["stop_reason"] for info in static.infos]


@pytest.mark.parametrize("episodes", [1, 4, 30])
def test_log_probs_and_values_of_sampled_rollouts_are_the_trainers(policy, episodes):
    rollout = collect(policy, StaticDecoder, episodes)
    assert len(rollout) == episodes
    assert rollout.num_tokens == rollout.lengths_B.sum()
    with torch.no_grad():
        log_probs, values, _ = policy.score(rollout)
    torch.testing.assert_close(rollout.log_probs_BT, log_probs, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.values_BT, values, rtol=0, atol=1e-4)


def test_draws_are_the_packed_decoders_until_a_row_ends(policy):
    prompts = [torch.tensor([2, 3]), torch.tensor([4])]
    found = []
    for kind in (Decoder, StaticDecoder):
        decoder = kind(policy, 2, 20)
        decoder.clear()
        decoder.start([0, 1], prompts)
        generator = torch.Generator().manual_seed(5)
        found.append(torch.stack([decoder.act(generator).actions_N for _ in range(8)]))
    assert torch.equal(*found)
    assert len(found[0].unique()) > 2


def test_the_same_seed_gives_the_same_rollout(policy):
    first, again, other = (collect(policy, StaticDecoder, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.input_ids_BS, again.input_ids_BS)
    assert torch.equal(first.log_probs_BT, again.log_probs_BT)
    assert not torch.equal(first.input_ids_BS, other.input_ids_BS)


def diary(policy, monkeypatch, **env_options):
    """The order in which the device is asked for tokens ("ask") and the environment takes them ("step")."""
    written = []
    env = make_env(4, **env_options)
    act, step = StaticDecoder.act, env.step
    monkeypatch.setattr(StaticDecoder, "act", lambda *args, **kw: written.append("ask") or act(*args, **kw))
    monkeypatch.setattr(env, "step", lambda actions: written.append("step") or step(actions))
    rollout = collect(policy, StaticDecoder, 4, env)
    return written, int(rollout.lengths_B.max())


def test_the_next_token_is_asked_for_before_the_environment_takes_the_last(policy, monkeypatch):
    written, steps = diary(policy, monkeypatch)
    assert written == ["ask", *["ask", "step"] * steps]  # of the one asked for last, all rows had ended


def test_where_the_environment_says_what_is_allowed_nothing_is_asked_ahead(policy, monkeypatch):
    rules = make_env(allowed_tokens=lambda prompt, actions, tokenizer: [1, 2, 3]).mdp
    written, steps = diary(policy, monkeypatch, mdp=rules)
    assert written == ["ask", "step"] * steps


def test_masks_are_kept_and_obeyed(policy):
    env = make_env(allowed_tokens=lambda prompt, actions, tokenizer: [1, 2, 3])
    rollout = collect(policy, StaticDecoder, env=env)
    assert rollout.allowed_BTV[rollout.action_mask_BT].sum(-1).unique().tolist() == [3]
    with torch.no_grad():
        log_probs, _, _ = policy.score(rollout)
    torch.testing.assert_close(rollout.log_probs_BT, log_probs, rtol=0, atol=1e-4)
    assert {token for completion in rollout.completions for token in completion.token_ids} == {1, 2, 3}


def test_an_agent_learns_through_it():
    agent = PPO(
        gpt2_config(), make_env(), seed=0, device="cpu", episodes_per_rollout=32, learning_rate=3e-3, num_envs=4
    )
    agent.collector.make_decoder = StaticDecoder
    before = collect(agent.policy, Decoder, 200, seed=9).returns_B.mean()
    agent.learn(4000)
    assert collect(agent.policy, Decoder, 200, seed=9).returns_B.mean() > before + 0.5


# --- bf16 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_cast_once_say_what_autocast_says(family):
    policy = make_policy(family, torch.float32, precision="bf16")
    prompts = [torch.tensor([2, 3, 4]), torch.tensor([5])]
    found = []
    for kind in (Decoder, StaticDecoder):
        decoder = kind(policy, 2, 20)
        decoder.clear()
        with torch.no_grad(), policy.autocast():
            decoder.start([0, 1], prompts)
            found.append([decoder.step(), decoder.append(torch.tensor([6, 7])), decoder.step()])
    for first, second in zip(*found, strict=True):
        if first is not None:
            torch.testing.assert_close(first[0], second[0], rtol=0, atol=0.02)
            torch.testing.assert_close(first[1], second[1], rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", [Decoder, StaticDecoder])
def test_the_cache_holds_what_attention_reads(kind):
    """Rotary positions give float32 keys; autocast's attention would make bf16 of all of them at every token."""
    policy = make_policy("llama", torch.float32, precision="bf16")
    decoder = kind(policy, 1, 20)
    decoder.clear()
    with torch.no_grad(), policy.autocast():
        decoder.start([0], [torch.tensor([2, 3, 4])])
        decoder.step()
    assert {states.dtype for layer in decoder.cache.layers for states in (layer.keys, layer.values)} == {torch.bfloat16}


def test_cast_weights_follow_the_policy_from_one_rollout_to_the_next():
    policy = make_policy("gpt2", torch.float32, precision="bf16")
    decoder = StaticDecoder(policy, 1, 20)

    def logits():
        decoder.clear()
        decoder.start([0], [torch.tensor([2, 3])])
        return decoder.step()[0]

    first = logits()
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(0.5)
    in_the_middle = decoder.step()[0]
    second, fresh = logits(), StaticDecoder(policy, 1, 20)
    fresh.clear()
    fresh.start([0], [torch.tensor([2, 3])])
    assert torch.equal(second, fresh.step()[0])
    assert not torch.allclose(first, second, atol=0.1)
    assert not torch.allclose(in_the_middle, second, atol=0.01)  # the matrices were still the old ones


def test_a_cast_copy_is_no_second_learner():
    policy = make_policy("gpt2", torch.float32, precision="bf16")
    policy.optimizer = torch.optim.Adam(policy.parameters())
    view = StaticDecoder(policy, 1, 20).policy
    assert view.__dict__.get("optimizer") is None
    assert not any(weight.requires_grad for weight in view.parameters())
    assert all(weight.requires_grad for weight in policy.parameters())
    shared = {weight.data_ptr() for weight in policy.parameters()}
    assert view.model.transformer.wte.weight.data_ptr() in shared
    assert view.model.lm_head.weight.dtype == torch.bfloat16  # tied, until one of them is cast
    assert view.value_head.weight.dtype == torch.float32


# --- CUDA ---------------------------------------------------------------------------------------------------


def test_each_device_has_its_decoder(policy):
    assert type(decoder_for(policy, 2, 20)) is Decoder


@needs_cuda
def test_on_cuda_steps_are_replayed(policy):
    on_device = copy.deepcopy(policy).cuda()
    assert type(decoder_for(on_device, 2, 20)) is StaticDecoder
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # captured, or a warning would say so
        rollout = collect(on_device, decoder_for)
    with torch.no_grad():
        log_probs, _, _ = on_device.score(rollout)
    torch.testing.assert_close(rollout.log_probs_BT, log_probs, rtol=0, atol=1e-4)
