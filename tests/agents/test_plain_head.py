"""Which language-model heads are one matrix: found out by trying."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from agents.model_source import load_model
from agents.plain_head import is_plain, plain_head
from agents.policy import TextPolicy
from agents.q_policy import PolicyWithTarget, QPolicy
from tests.agents.conftest import FAMILIES, VOCAB, gpt2_config, largest_gap, make_policy
from tests.agents.test_chunked_log_probs import scored

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MORE_THAN_LINEAR = {
    "a cap": lambda: Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=30.0),
    "a factor": lambda: CohereConfig(**SHAPE, logit_scale=0.25),
    "a divisor": lambda: GraniteConfig(**SHAPE, logits_scaling=4.0),
}


def from_config(config, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
    return TextPolicy(model, VOCAB, **kwargs)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_heads_are_known(family, precision):
    assert is_plain(make_policy(family, dtype=torch.float32, precision=precision))


@pytest.mark.parametrize("what", MORE_THAN_LINEAR)
def test_what_follows_the_head_is_noticed(what):
    policy = from_config(MORE_THAN_LINEAR[what]())
    assert plain_head(policy) is not None  # from the module alone nobody could tell
    assert not is_plain(policy)
    expected = scored(policy)
    policy.most_logits = 4 * VOCAB
    assert largest_gap(scored(policy), expected) == 0  # whole logits, as before
    policy._head_is_plain = True  # must fail: taken for plain, the answers are others
    assert largest_gap(scored(policy), expected) > 1e-6


def test_the_same_architectures_without_it_are_plain():
    assert is_plain(from_config(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=None)))
    assert is_plain(from_config(CohereConfig(**SHAPE, logit_scale=1.0)))


@pytest.mark.parametrize("prior", [False, True])
def test_logits_that_a_subclass_makes_are_not_the_heads(prior):
    assert not is_plain(QPolicy(load_model(gpt2_config()), 8, prior=prior))
    assert is_plain(PolicyWithTarget(load_model(gpt2_config()), 8))


@pytest.mark.parametrize("on_head", [False, True])
def test_an_adapter_on_the_head_is_noticed_while_it_still_adds_nothing(on_head):
    peft = pytest.importorskip("peft")
    targets = ["c_attn", "lm_head"] if on_head else ["c_attn"]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied ends and mixed kinds of layer: peft's own affair
        adapted = peft.get_peft_model(load_model(gpt2_config()), peft.LoraConfig(r=2, target_modules=targets))
    assert is_plain(TextPolicy(adapted, 8)) != on_head


def test_trying_leaves_nothing_behind():
    policy = make_policy()
    state = torch.get_rng_state()
    assert is_plain(policy)
    assert not policy.model.get_output_embeddings()._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.grad is not None for parameter in policy.parameters())
