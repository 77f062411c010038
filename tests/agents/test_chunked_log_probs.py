"""Log-probabilities some rows at a time: the same numbers and gradients, and never a tensor of all places' logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents.chunked_log_probs import chunked_log_probs
from agents.policy import chosen, entropy
from tests.agents.conftest import FAMILIES, VOCAB, gradients, largest_gap, make_episodes, make_policy

N, H, V = 7, 5, 11


def problem(dtype=torch.float64, *, bias=True, forbidden=True):
    """Hidden states, head, actions, and which actions are allowed (the chosen ones are)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((N, H), (V, H), (V,))
    )
    actions = torch.randint(0, V, (N,), generator=generator)
    allowed = torch.rand(N, V, generator=generator) < 0.5
    allowed[torch.arange(N), actions] = True
    return hidden, weight, offset if bias else None, actions, allowed if forbidden else None


def whole(hidden, weight, bias, actions, *, temperature=1.0, allowed_NV=None):
    """The same by one softmax over all rows."""
    logits = torch.nn.functional.linear(hidden, weight, bias).to(torch.promote_types(weight.dtype, torch.float32))
    logits = logits / temperature
    if allowed_NV is not None:
        logits = logits.masked_fill(~allowed_NV, -torch.inf)
    log_probs = logits.log_softmax(-1)
    return chosen(log_probs, actions), entropy(log_probs)


def with_gradients(outputs, inputs, *, of_entropy=True):
    """Outputs, and the gradients of an uneven sum of them."""
    log_probs, entropies = outputs
    weights = torch.linspace(-1, 2, len(log_probs), dtype=log_probs.dtype)
    loss = (weights * log_probs).sum() + ((3 - weights) * entropies).sum() * of_entropy
    return log_probs.detach(), entropies.detach(), *torch.autograd.grad(loss, [x for x in inputs if x is not None])


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_any_chunks_give_what_one_softmax_gives(rows, temperature, forbidden, bias):
    hidden, weight, offset, actions, allowed = problem(bias=bias, forbidden=forbidden)
    options = {"temperature": temperature, "allowed_NV": allowed}
    inputs = (hidden, weight, offset)
    seen = with_gradients(chunked_log_probs(*inputs, actions, most_logits=rows * V, **options), inputs)
    expected = with_gradients(whole(*inputs, actions, **options), inputs)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("forbidden", [False, True])
def test_the_gradient_is_that_of_the_values(entropy_gradient, forbidden):
    *inputs, actions, allowed = problem(forbidden=forbidden)

    def function(*inputs):
        log_probs, entropies = chunked_log_probs(
            *inputs,
            actions,
            allowed_NV=allowed,
            temperature=1.3,
            most_logits=3 * V,
            entropy_gradient=entropy_gradient,
        )
        assert entropies.requires_grad == entropy_gradient
        return (log_probs, entropies) if entropy_gradient else log_probs

    assert torch.autograd.gradcheck(function, inputs)


def test_without_entropies_they_are_zero():
    *inputs, actions, _ = problem()
    log_probs, entropies = chunked_log_probs(*inputs, actions, with_entropy=False, most_logits=V)
    assert (entropies == 0).all()
    torch.testing.assert_close(log_probs, whole(*inputs, actions)[0])
    assert all(grad is None for grad in torch.autograd.grad(entropies.sum(), inputs, allow_unused=True))


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, bias, actions, _ = problem()
    log_probs, _ = chunked_log_probs(hidden, weight.detach(), bias.detach(), actions, most_logits=V)
    expected, _ = whole(hidden, weight, bias, actions)
    (ours,), (theirs,) = (torch.autograd.grad(x.sum(), [hidden]) for x in (log_probs, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_forbidden_action_has_no_gradient_and_no_nan():
    """Its probability is 0 whatever the weights are; gradients beyond 1 must not turn the lowest number into NaN."""
    hidden, weight, bias, actions, allowed = problem()
    allowed[0, actions[0]] = False
    log_probs, entropies = chunked_log_probs(hidden, weight, bias, actions, allowed_NV=allowed, most_logits=2 * V)
    assert log_probs[0] == -torch.inf
    seen = torch.autograd.grad(9 * log_probs.sum() - 9 * entropies.sum(), [hidden, weight, bias])
    log_probs, entropies = whole(hidden, weight, bias, actions, allowed_NV=allowed)
    expected = torch.autograd.grad(9 * log_probs.sum() - 9 * entropies.sum(), [hidden, weight, bias])
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_products_in_bf16_have_a_float32_softmax():
    hidden, weight, bias, actions, _ = problem(torch.float32)
    inputs = (hidden, weight, bias)
    seen = with_gradients(chunked_log_probs(*inputs, actions, dtype=torch.bfloat16, most_logits=2 * V), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        expected = with_gradients(whole(*inputs, actions), inputs)
    exact = with_gradients(whole(*inputs, actions), inputs)
    for ours, theirs, precise in zip(seen, expected, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)
        assert (ours - precise).abs().max() > 1e-4  # bf16 indeed
    torch.testing.assert_close(seen[0], expected[0], rtol=0, atol=1e-6)


# --- in a policy


def scored(policy, *, of_entropy=True, allowed=None, groups=False):
    """Log-probabilities, values and entropies of ragged episodes, and every gradient of an uneven sum of them."""
    episodes = make_episodes(prompts=(8, 5, 8, 8, 5, 1))
    policy.zero_grad(set_to_none=True)
    outputs = episodes.score(
        policy,
        groups_B=episodes.groups_B if groups else None,
        entropy_gradient=of_entropy,
        allowed_BTV=None if allowed is None else allowed,
    )
    weights = torch.linspace(-1, 2, outputs[0].numel(), dtype=outputs[0].dtype).view_as(outputs[0])
    sum(((weights + at) * output).sum() for at, output in enumerate(outputs)).backward()
    return {**dict(enumerate(output.detach() for output in outputs)), **gradients(policy)}


def allowed_actions():
    """Half of the actions, the taken ones among them."""
    episodes = make_episodes(prompts=(8, 5, 8, 8, 5, 1))
    allowed = torch.rand(*episodes.action_mask_BT.shape, VOCAB, generator=torch.Generator().manual_seed(1)) < 0.5
    rows, steps = episodes.action_mask_BT.nonzero(as_tuple=True)
    allowed[rows, steps, episodes.input_ids_BS[rows, episodes.prompt_lengths_B[rows] + steps]] = True
    return allowed


@pytest.mark.parametrize("family", FAMILIES)
def test_policies_score_alike(family):
    policy = make_policy(family, temperature=0.8)
    expected = scored(policy)
    policy.most_logits = 4 * VOCAB
    assert policy.head_to_chunk() is not None
    assert largest_gap(scored(policy), expected) < 1e-10


@pytest.mark.parametrize(
    "options",
    [{"of_entropy": False}, {"allowed": allowed_actions()}, {"groups": True}],
    ids=["entropies for the log", "masks", "shared prompts"],
)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_way_to_score_is_the_same(options, dtype, most):
    policy = make_policy(dtype=dtype)
    expected = scored(policy, **options)
    policy.most_logits = 4 * VOCAB
    assert largest_gap(scored(policy, **options), expected) < most


def test_the_same_within_a_millionth_in_float32():
    """At the size of gradients that a loss has: means over the actions."""
    policy, episodes = make_policy(dtype=torch.float32), make_episodes()
    found = []
    for most_logits in (policy.most_logits, 4 * VOCAB):
        policy.most_logits = most_logits
        policy.zero_grad(set_to_none=True)
        log_probs, values, entropies = episodes.score(policy)
        (log_probs.mean() + 0.1 * entropies.mean()).backward()
        found.append({0: log_probs.detach(), 1: values.detach(), 2: entropies.detach(), **gradients(policy)})
    scale = max(1.0, *(float(value.abs().max()) for value in found[0].values()))
    assert largest_gap(*found) < 1e-6 * scale


def test_bf16_and_recomputed_layers_score_alike():
    for options in ({"precision": "bf16"}, {"gradient_checkpointing": True}):
        policy = make_policy(dtype=torch.float32, **options)
        expected = scored(policy)
        policy.most_logits = 4 * VOCAB
        seen = scored(policy)
        scale = max(1.0, *(float(value.abs().max()) for value in expected.values()))
        assert largest_gap(seen, expected) < (2e-2 if "precision" in options else 1e-6) * scale


def test_ids_beyond_the_actions_get_no_probability():
    whole_policy, policy = (make_policy(vocab_size=VOCAB + 7) for _ in range(2))
    for each in (whole_policy, policy):
        each.vocab_size = VOCAB
    policy.most_logits = 4 * VOCAB
    assert largest_gap(scored(policy), scored(whole_policy)) < 1e-10


# --- memory


class Largest(TorchDispatchMode):
    """The most elements of a floating-point tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    vocab, rows = 1000, 40
    policy = make_policy(dtype=torch.float32, vocab_size=vocab)
    episodes = make_episodes((5,) * 20, (10,) * 20, (0,) * 20, vocab_size=vocab)
    assert rows * vocab > max(parameter.numel() for parameter in policy.parameters())
    for most_logits, bounded in ((rows * vocab, True), (policy.most_logits, False)):  # must fail: whole logits
        policy.most_logits = most_logits
        with Largest() as largest:
            log_probs, _, entropies = episodes.score(policy)
            (log_probs.sum() + entropies.sum()).backward()
        assert (largest.elements <= rows * vocab) == bounded
    assert largest.elements == 200 * vocab


def test_small_forwards_are_left_whole(monkeypatch):
    policy = make_policy()
    monkeypatch.setattr("agents.policy.chunked_log_probs", lambda *_, **__: pytest.fail("in chunks"))
    make_episodes().score(policy)
    assert policy._head_is_plain is None  # not even asked
