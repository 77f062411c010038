"""Log-probabilities belong to the episode alone: not to its neighbours, its padding or the way it is batched."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from agents.model_source import load_model
from agents.policy import TextPolicy, chosen, entropy
from agents.supervised import Pairs
from tests.agents.conftest import (
    FAMILIES,
    VOCAB,
    gpt2_config,
    largest_gap,
    make_episodes,
    make_policy,
    pair_loss,
    weights,
)


@torch.no_grad()
def plain(policy, row, prompt_length):
    """log π, V and entropy of a row's actions, from the model called as its documentation says, alone."""
    output = policy.model(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False)
    log_probs = torch.log_softmax(output.logits[0] / policy.temperature, dim=-1)[prompt_length - 1 : -1]
    values = policy.value_head(output.hidden_states[-1][0])[prompt_length - 1 : -1, 0]
    actions = torch.tensor(row[prompt_length:])
    return log_probs[range(len(actions)), actions], values, -(log_probs.exp() * log_probs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_plain_model(family, temperature):
    policy, episodes = make_policy(family, temperature=temperature), make_episodes(extra_width=3)
    outputs = episodes.score(policy)
    for index, (row, prompt_length) in enumerate(episodes.rows()):
        for output, expected in zip(outputs, plain(policy, row, prompt_length), strict=True):
            torch.testing.assert_close(output[index, : len(expected)], expected, rtol=0, atol=1e-10)
            assert (output[index, len(expected) :] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_partners_do_not_matter(family):
    policy = make_policy(family)
    reference = make_episodes().score(policy)
    for pad, extra in ((17, 0), (0, 9), (1, 4)):  # 1 is the EOS: a mask guessed from ids would be wrong
        for output, expected in zip(make_episodes(pad=pad, extra_width=extra).score(policy), reference, strict=True):
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    episodes = make_episodes()
    for index in range(4):
        one = slice(index, index + 1)
        alone = policy.score_actions(
            episodes.input_ids_BS[one], episodes.prompt_lengths_B[one], episodes.action_mask_BT[one]
        )
        for output, expected in zip(alone, reference, strict=True):
            torch.testing.assert_close(output, expected[one], rtol=0, atol=1e-10)


@torch.no_grad()
def test_left_padding_without_positions_is_seen():
    """Must fail: what the checks above would report of GPT-2 padded on the left and told no positions."""
    policy, episodes = make_policy(), make_episodes()
    row, prompt_length = episodes.rows()[0]
    expected, *_ = plain(policy, row, prompt_length)
    padded, mask = torch.tensor([[0] * 5 + row]), torch.tensor([[0] * 5 + [1] * len(row)])
    for positions, agrees in ((None, False), ((mask.cumsum(-1) - 1).clamp(min=0), True)):
        logits = policy.model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[0, 5:]
        log_probs = chosen(logits[prompt_length - 1 : -1].log_softmax(-1), torch.tensor(row[prompt_length:]))
        gap = float((log_probs - expected).abs().max())
        assert (gap < 1e-10) if agrees else (gap > 0.1)


def test_entropy_gradient_is_optional():
    policy, episodes = make_policy(), make_episodes()
    _, _, with_gradient = episodes.score(policy)
    _, _, without = episodes.score(policy, entropy_gradient=False)
    assert with_gradient.requires_grad
    assert not without.requires_grad
    torch.testing.assert_close(without, with_gradient.detach(), rtol=0, atol=0)
    assert (episodes.score(policy, with_entropy=False)[2] == 0).all()


def test_entropy_of_known_distributions():
    torch.testing.assert_close(entropy(torch.zeros(2, 8).log_softmax(-1)), torch.full((2,), 8.0).log())
    half = torch.tensor([[0.0, 0.0, float("-inf")]]).log_softmax(-1)
    torch.testing.assert_close(entropy(half), torch.tensor([2.0]).log())
    logits = torch.tensor([[0.0, 0.0, float("-inf")]], requires_grad=True)
    (gradient,) = torch.autograd.grad(1000 * entropy(logits.log_softmax(-1)).sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(1, 3), rtol=0, atol=1e-3)  # at its highest, and no NaN
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_probs, trusted = logits.log_softmax(-1), torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(entropy(log_probs), trusted.entropy())
    actions = torch.tensor([0, 3, 8, 1, 1])
    torch.testing.assert_close(chosen(log_probs, actions), trusted.log_prob(actions))


def test_logits_of_padded_embeddings_are_cut_off():
    """A vocabulary rounded up to a multiple of 8 has ids that are no actions: they must get no probability."""
    wide = make_policy().model
    policy = TextPolicy(wide, VOCAB - 5)
    logits, values = policy(torch.tensor([[3, 4]]), torch.tensor([[0, 1]]), torch.tensor([1]))
    assert logits.shape == (1, VOCAB - 5)
    assert values.shape == (1,)
    assert float(logits.detach().softmax(-1).sum()) == pytest.approx(1)


def test_dropout_is_off_in_every_mode():
    policy, episodes = make_policy(), make_episodes()
    policy.set_training_mode(True)
    assert policy.model.config.resid_pdrop == 0.1
    assert not any(module.training for module in policy.modules())
    torch.testing.assert_close(episodes.score(policy)[0], episodes.score(policy)[0], rtol=0, atol=0)
    policy.train()  # must fail: with dropout, two forwards of one network disagree
    assert (episodes.score(policy)[0] - episodes.score(policy)[0]).abs().max() > 1e-2


def test_a_fresh_critic_says_zero():
    policy = TextPolicy(load_model(gpt2_config()), 8)
    assert (make_episodes(vocab_size=8).score(policy)[1] == 0).all()


def test_bf16_computes_outputs_in_float32():
    policy, episodes = make_policy(dtype=torch.float32, precision="bf16"), make_episodes()
    outputs = episodes.score(policy)
    assert {output.dtype for output in outputs} == {torch.float32}
    logits, values = policy(episodes.input_ids_BS, torch.arange(11).expand(6, -1), torch.arange(8))
    assert (logits.dtype, values.dtype) == (torch.float32, torch.float32)
    exact = make_episodes().score(make_policy(dtype=torch.float32))
    assert 0 < (outputs[0] - exact[0]).abs().max() < 1  # bf16 indeed, and close


# Loading and saving


def test_on_a_gpu_attention_is_not_cudnns(monkeypatch):
    policy = make_policy()
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with policy._attention_kernels():
        assert torch.backends.cuda.cudnn_sdp_enabled() == before  # a CPU has none
    monkeypatch.setattr(TextPolicy, "device", torch.device("cuda"))
    with policy._attention_kernels():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_config_gives_the_same_weights_for_the_same_seed():
    first, again, other = (weights(load_model(gpt2_config(), seed)) for seed in (5, 5, 6))
    assert largest_gap(first, again) == 0
    assert largest_gap(first, other) > 0.01


def test_making_a_policy_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    TextPolicy(load_model(gpt2_config(), 5), 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_object_is_used_and_not_copied():
    model = GPT2LMHeadModel(gpt2_config())
    assert load_model(model) is model


def test_saved_folders_load_as_plain_language_models(tmp_path):
    policy = make_policy(dtype=torch.float32)
    policy.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(2, 9)[None]
    torch.testing.assert_close(model(ids).logits, policy.model(ids).logits, rtol=0, atol=0)
    assert largest_gap(weights(load_model(tmp_path)), weights(policy.model)) == 0


def test_loss_hook_is_gone_after_an_error():
    """A forward that fails must not leave its hook behind: the next one would select rows twice."""
    policy = make_policy()
    with pytest.raises(IndexError):
        policy(torch.tensor([[3, VOCAB + 9]]), torch.tensor([[0, 1]]), torch.tensor([1]))
    assert not policy.model.get_output_embeddings()._forward_pre_hooks
    pairs = Pairs(torch.tensor([[3, 4, 1]]), torch.tensor([1]), torch.tensor([3]))
    assert pair_loss(policy, pairs, [0])[0].isfinite()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": VOCAB + 1}, "knows 40 tokens, the environment has 41 actions"),
        ({"vocab_size": VOCAB, "temperature": 0.0}, "temperature must be above 0"),
        ({"vocab_size": VOCAB, "precision": "fp16"}, "'float32' or 'bf16'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TextPolicy(make_policy().model, **arguments)


def test_what_is_no_language_model_is_refused():
    with pytest.raises(TypeError, match="hub name, a folder, a transformers config"):
        load_model(42)
    headless = AutoModel.from_config(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(ValueError, match="no language-model head"):
        TextPolicy(headless, VOCAB)
