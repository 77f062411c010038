"""How many tokens a GPU's memory holds: the formula, by numbers and against what a model really keeps."""

import pytest
import torch

from agents.memory import DEFAULT_TOKENS, shape_of, tokens_for, tokens_that_fit
from agents.micro_batches import MicroBatches
from agents.ppo import PPOConfig
from tests.agents.conftest import VOCAB, make_agent, make_episodes, make_policy
from tests.agents.test_activation_checkpointing import saved_bytes

SHAPE = {"reserved_bytes": 0, "layer_values": [10, 30], "width": 5, "value_bytes": 4, "recompute": False}


def test_the_formula_by_numbers():
    assert tokens_that_fit(1000, **SHAPE) == 800 // (2 * 4 * (10 + 30))
    assert tokens_that_fit(10_000, **SHAPE) == 8000 // 320
    assert tokens_that_fit(10_000, **{**SHAPE, "reserved_bytes": 1600}) == 6400 // 320
    assert tokens_that_fit(10_000, **{**SHAPE, "value_bytes": 2}) == 8000 // 160
    assert tokens_that_fit(10_000, **{**SHAPE, "recompute": True}) == 8000 // (2 * 4 * 30 + 4 * 5 * 2)
    assert tokens_that_fit(10, **{**SHAPE, "reserved_bytes": 1600}) == 1  # trying is cheaper than refusing


def test_the_shape_of_a_policy():
    policy = make_policy(dtype=torch.float32)  # GPT-2, 2 layers of 32
    shape = shape_of(policy)
    assert shape["layer_values"] == [16 * 32] * 2
    assert (shape["width"], shape["value_bytes"], shape["recompute"]) == (32, 4, False)
    size = 4 * sum(parameter.numel() for parameter in policy.parameters())
    logits = 20 * policy.most_logits
    assert shape["reserved_bytes"] == 3 * size + logits  # a gradient and two moments
    policy.optimizer = torch.optim.Adam(policy.parameters())
    episodes = make_episodes()
    sum(output.sum() for output in episodes.score(policy)).backward()
    assert shape_of(policy)["reserved_bytes"] == 2 * size + logits
    policy.optimizer.step()
    assert shape_of(policy)["reserved_bytes"] == logits
    bf16 = shape_of(make_policy(dtype=torch.float32, precision="bf16", gradient_checkpointing=True))
    assert (bf16["value_bytes"], bf16["recompute"]) == (2, True)
    assert bf16["reserved_bytes"] == 3 * size + size // 2 + logits


def test_logits_that_cannot_be_made_in_chunks_count_a_token():
    policy = make_policy(dtype=torch.float32)
    chunks = shape_of(policy)
    policy._head_is_plain = False
    whole = shape_of(policy)
    assert (chunks["logits"], whole["logits"]) == (0, VOCAB)
    assert chunks["reserved_bytes"] - whole["reserved_bytes"] == 20 * policy.most_logits
    rest = {**whole, "reserved_bytes": 0}
    layers = sum(whole["layer_values"])
    assert tokens_that_fit(10**9, **rest) == int(0.8 * 10**9 / (2 * 4 * layers + 20 * VOCAB))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_less_is_reckoned_with_than_is_kept(family, precision):
    """What the graph really keeps for its backward pass, the head's softmax included, is below the formula's."""
    policy = make_policy(family, dtype=torch.float32, precision=precision)
    shape = shape_of(policy)
    tokens = make_episodes().input_ids_BS.numel()
    reckoned = tokens * 2 * shape["value_bytes"] * sum(shape["layer_values"]) + 20 * tokens * VOCAB
    reckoned += 2 * sum(weight.numel() for weight in policy.parameters()) * (precision == "bf16")
    assert reckoned / 4 < saved_bytes(policy) < reckoned


def test_on_a_cpu_the_number_is_fixed():
    assert tokens_for(make_policy()) == DEFAULT_TOKENS == make_agent().micro_batches.tokens == 16_384
    assert make_agent(micro_batch_tokens=77).micro_batches.tokens == 77


def test_on_a_gpu_it_is_the_formulas(monkeypatch):
    """The CUDA calls pretended, the rest real."""
    policy = make_policy(dtype=torch.float32)
    assert policy.head_to_chunk() is not None  # by a forward, while the device is real
    monkeypatch.setattr(type(policy), "device", torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (30 * 2**30, 80 * 2**30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 3 * 2**30)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: 2**30)
    assert tokens_for(policy) == tokens_that_fit(32 * 2**30, **shape_of(policy)) > DEFAULT_TOKENS
    batches = MicroBatches(policy, PPOConfig())
    found = batches.tokens
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (2**30, 80 * 2**30))
    assert batches.tokens == found  # asked for once: the update's own tensors fill what was free


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_an_update_of_the_found_size_fits():
    policy = make_policy(dtype=torch.float32).cuda()
    limit = 2**31 / torch.cuda.get_device_properties(0).total_memory  # of two GiB, one is the softmax's
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        tokens = tokens_that_fit(2**31, **shape_of(policy))
        count = tokens // 48
        ids = torch.randint(2, VOCAB, (count, 48), device="cuda")
        mask = torch.ones(count, 40, dtype=torch.bool, device="cuda")
        log_probs, _, _ = policy.score_actions(ids, torch.full((count,), 8, device="cuda"), mask)
        log_probs.sum().backward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
