import numpy as np
import pytest
import torch

from agents.models import small_gpt2
from reward_models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    discriminator_loss,
    token_rewards,
)
from textgen_env import TextMDP, TextTask, TextTokenizer
from textgen_env.tokenizer import word_tokenizer

PAD, EOS, GO, A, B = range(5)
WORDS = ("go", "a", "b")


@pytest.fixture
def tokenizer():
    return TextTokenizer(word_tokenizer(WORDS))


def make(tokenizer, width=16, seed=0, **options):
    config = DiscriminatorConfig(**{"weight_decay": 0.0, "batch_size": 32, **options})
    return Discriminator(
        tokenizer, small_gpt2(tokenizer, positions=8, layers=1, width=width, heads=2), config, seed=seed, device="cpu"
    )


@pytest.fixture
def fitted(tokenizer):
    """One that has learned something."""
    judge = make(tokenizer, learning_rate=1e-2)
    judge.fit([([GO], [A, B, EOS]), ([GO, GO], [A, A, A, B])], [([GO], [B, EOS]), ([GO], [B, B, A, A])], steps=20)
    return judge


# The logits


def test_a_fresh_one_knows_nothing(tokenizer):
    judge = make(tokenizer)
    assert judge(completion_ids=[[A, EOS], [B, B, B]], prompts=["go", "go go"]) == [[0.0, 0.0], [0.0, 0.0, 0.0]]


def test_later_tokens_do_not_change_earlier_logits(fitted):
    short, _ = fitted.logits([([GO], [A, B, EOS])])
    long, _ = fitted.logits([([GO], [A, B, A, B, B, A])])
    assert torch.equal(long[:, :2], short[:, :2]) or (long[:, :2] - short[:, :2]).abs().max() < 1e-6
    assert (long[:, 2] - short[:, 2]).abs() > 1e-2  # the third one is another token


def test_padding_and_company_change_nothing(fitted):
    texts = [([GO], [A]), ([GO, GO, GO], [B, A, A, B, EOS]), ([GO, A], [B, EOS])]
    together, mask_BT = fitted.logits(texts)
    assert mask_BT.sum(-1).tolist() == [1, 5, 2]
    assert together[~mask_BT].abs().max() == 0
    for row, text in enumerate(texts):
        alone, _ = fitted.logits([text])
        assert torch.allclose(together[row][mask_BT[row]], alone[0], atol=1e-6)
    # scoring sorts by length and puts the answers back in their places
    paid = fitted.rewards(texts)
    assert [len(rewards) for rewards in paid] == [1, 5, 2]
    assert paid == [pytest.approx(fitted.rewards([text])[0], abs=1e-6) for text in texts]


# The optimum: log p − log q, exactly, on every prefix of an enumerated tree


def tree(rng, steps=3):
    """Every text of a, b and EOS, the EOS only at an end; with random conditionals."""
    texts = {}

    def grow(prefix, prob):
        if len(prefix) == steps or (prefix and prefix[-1] == EOS):
            texts[prefix] = prob
            return
        for token, share in zip((EOS, A, B), rng.dirichlet(np.full(3, 2.0)), strict=True):
            grow((*prefix, token), prob * share)

    grow((), 1.0)
    return texts


def prefix_prob(texts, prefix):
    return sum(prob for text, prob in texts.items() if text[: len(prefix)] == prefix)


def fit_tree(tokenizer, loss_of):
    """Logits after fitting on all texts of both sides at once, each weighed by its probability."""
    rng = np.random.default_rng(3)
    real, fake = tree(rng), tree(rng)
    judge = make(tokenizer, width=32)
    optimiser = torch.optim.Adam(judge.model.parameters(), lr=1e-2)
    texts = list(real)
    p, q = (torch.tensor([side[text] for text in texts], dtype=torch.float32) for side in (real, fake))
    for _ in range(200):
        logits_BT, mask_BT = judge.logits([([GO], text) for text in texts])
        optimiser.zero_grad()
        loss_of(logits_BT, mask_BT, p, q).backward()
        optimiser.step()
    with torch.no_grad():
        logits_BT, _ = judge.logits([([GO], text) for text in texts])
    gap = 0.0
    for row, text in enumerate(texts):
        for length in range(1, len(text) + 1):
            best = np.log(prefix_prob(real, text[:length]) / prefix_prob(fake, text[:length]))
            gap = max(gap, abs(float(logits_BT[row, length - 1]) - best))
    return gap


def by_text(logits_BT, mask_BT, p, q):
    """`discriminator_loss` in expectation: its sums over texts become expectations over p and q."""
    count = len(logits_BT)
    return discriminator_loss(logits_BT, mask_BT * p[:, None] * count, logits_BT, mask_BT * q[:, None] * count)


def by_token(logits_BT, mask_BT, p, q):
    """The twin: a mean over the tokens of each side, which adds log of the ratio of the mean lengths."""
    real, fake = mask_BT * p[:, None], mask_BT * q[:, None]
    return (torch.nn.functional.softplus(-logits_BT) * real).sum() / real.sum() + (
        torch.nn.functional.softplus(logits_BT) * fake
    ).sum() / fake.sum()


def test_the_best_logit_is_the_log_density_ratio(tokenizer):
    assert fit_tree(tokenizer, by_text) < 0.03
    assert fit_tree(tokenizer, by_token) > 0.1  # must fail


# What is paid


@pytest.mark.parametrize(
    ("form", "f"),
    [
        ("logit", lambda x: x),
        ("log_real", lambda x: -np.log1p(np.exp(-x))),
        ("minus_log_fake", lambda x: np.log1p(np.exp(x))),
    ],
)
@pytest.mark.parametrize("credit", ["token", "terminal"])
def test_rewards_by_hand(form, f, credit):
    logits_BT = torch.tensor([[0.5, -2.0, 9.0], [1.0, 0.0, 0.0]])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    paid = token_rewards(logits_BT, mask_BT, form, credit, clip=3.0).tolist()
    steps = [f(0.5) - f(0), f(-2) - f(0.5), f(3) - f(-2)]
    expected = steps if credit == "token" else [0, 0, sum(steps)]
    assert paid[0] == pytest.approx(expected, abs=1e-6)
    assert paid[1] == pytest.approx([f(1) - f(0), 0, 0], abs=1e-6)
    assert sum(paid[0]) == pytest.approx(f(3) - f(0), abs=1e-6)  # of either credit


def test_centring_takes_the_mean_off_and_pays_nobody_for_length(tokenizer):
    real = [([GO], [A, A, EOS]), ([GO], [A, B, A, EOS])] * 8
    fake = [([GO], [B, EOS]), ([GO], [B, B, B, B])] * 8
    judge = make(tokenizer, learning_rate=1e-2)
    found = judge.fit(real, fake, steps=10)
    paid = judge(completion_ids=[ids for _, ids in fake], prompts=["go"] * len(fake))
    assert np.mean([sum(rewards) for rewards in paid]) == pytest.approx(0, abs=1e-5)
    assert judge.centre == pytest.approx(found["reward_fake"])
    assert abs(judge.centre) > 0.1
    raw = judge.rewards(fake)
    for centred, bare in zip(paid, raw, strict=True):  # the same for a short one and a long one
        assert sum(bare) - sum(centred) == pytest.approx(judge.centre, abs=1e-5)
        assert centred[:-1] == bare[:-1]
    plain = make(tokenizer, learning_rate=1e-2, centre=False)
    plain.fit(real, fake, steps=10)
    assert plain.centre == 0.0


def test_scoring_changes_nothing(fitted):
    before = {name: weight.clone() for name, weight in fitted.model.state_dict().items()}
    centre, seen = fitted.centre, fitted.replay.seen
    first = fitted(completion_ids=[[A, B]], prompts=["go"])
    assert fitted(completion_ids=[[A, B]], prompts=["go"]) == first
    assert (fitted.centre, fitted.replay.seen) == (centre, seen)
    assert all(torch.equal(weight, before[name]) for name, weight in fitted.model.state_dict().items())


def test_it_is_a_reward_like_any_other(tokenizer, fitted):
    mdp = TextMDP(TextTask.from_pairs([("go", "a b")], fractions=(1, 0, 0)), fitted, tokenizer, max_new_tokens=3)
    scores = mdp.score([mdp.complete(0, [A, B, EOS], "eos")])
    assert scores.token_rewards[0].tolist() == fitted(completion_ids=[[A, B, EOS]], prompts=["go"])[0]
    assert list(scores.components) == ["discriminator"]
    half = TextMDP(mdp.task, 0.5 * fitted - 1.0, tokenizer, max_new_tokens=3)
    assert half.returns([half.complete(0, [A, B], None)])[0] == pytest.approx(
        0.5 * sum(fitted(completion_ids=[[A, B]], prompts=["go"])[0]) - 1.0
    )


# Learning


def test_it_learns_to_tell_texts_apart(tokenizer):
    judge = make(tokenizer, learning_rate=1e-2)
    real = [([GO], [A, x, EOS]) for x in (A, B)] * 8
    fake = [([GO], [B, x, EOS]) for x in (A, B)] * 8
    first = judge.fit(real, fake, steps=1)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    last = judge.fit(real, fake, steps=40)
    assert last["loss"] < 0.3
    assert judge.steps == 41
    assert (judge.fit(real, fake, 1)["accuracy_real"], judge.fit(real, fake, 1)["accuracy_fake"]) == (1.0, 1.0)
    token = judge.rewards([([GO], [A, B, EOS])])[0]
    assert token[0] > 1.0  # the first word gives it away
    assert token[0] > max(map(abs, token[1:]))


def test_a_seed_repeats_bit_for_bit(tokenizer):
    def weights(seed):
        judge = make(tokenizer, seed=seed, replay_size=8)
        state = torch.random.get_rng_state()
        for round_ in range(3):
            texts = [([GO], [A, B] * (1 + row % 2)) for row in range(round_ + 4)]
            judge.fit(texts, [([GO], [B, row % 2 + A]) for row in range(6)], steps=2)
        assert torch.equal(torch.random.get_rng_state(), state)
        return torch.cat([weight.flatten() for weight in judge.model.state_dict().values()]), judge.replay.items

    (first, kept), (again, kept_again), (other, _) = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert kept == kept_again
    assert not torch.equal(first, other)


def test_old_samples_stay_in_mind(tokenizer):
    """What the policy wrote long ago is still worth little; the twin without replay has forgotten."""
    old, new = [([GO], [B, B])] * 32, [([GO], [A, B])] * 32
    real = [([GO], [A, A])] * 32

    def worth(share):
        judge = make(tokenizer, learning_rate=1e-2, replay_share=share, centre=False)
        judge.fit(real + old, old, steps=30)
        judge.fit(real + old, new, steps=30)
        return sum(judge.rewards([old[0]])[0])

    assert worth(0.5) < worth(0.0) - 0.3


# On disk, and errors


def test_what_is_loaded_scores_alike(tokenizer, fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    loaded = Discriminator.from_pretrained(tmp_path, tokenizer, device="cpu")
    texts = {"completion_ids": [[A, B, EOS], [B, B, B]], "prompts": ["go", "go go"]}
    assert loaded(**texts) == fitted(**texts)
    assert loaded(**texts)[0] != [0.0, 0.0, 0.0]
    assert (loaded.config, loaded.steps, loaded.centre) == (fitted.config, fitted.steps, fitted.centre)
    loaded.fit([([GO], [A])], [([GO], [B])], steps=1)  # and goes on learning


def test_a_language_models_weights_are_a_start(tokenizer, fitted, tmp_path):
    """Its output layer is replaced: what it found likely is no opinion about what is real."""
    from transformers import AutoModelForCausalLM

    config = small_gpt2(tokenizer, positions=8, layers=1, width=16, heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    judge = Discriminator(tokenizer, str(tmp_path), device="cpu")
    assert judge(completion_ids=[[A, EOS]], prompts=["go"]) == [[0.0, 0.0]]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(judge.model.get_input_embeddings().weight, saved.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "logits"}, "form must be one of logit, log_real, minus_log_fake; did you mean 'logit'"),
        ({"credit": "tokens"}, "credit must be one of token, terminal; did you mean 'token'"),
        ({"clip": 0}, "clip must be above 0, got 0"),
        ({"batch_size": 0}, "batch_size must be above 0, got 0"),
        ({"replay_share": 1.0}, r"replay_share must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**options)


def test_bad_models_and_texts(tokenizer, fitted):
    with pytest.raises(TypeError, match=r"model must be a transformers config.*not int"):
        Discriminator(tokenizer, 3)
    larger = TextTokenizer(word_tokenizer([*WORDS, "c"]))
    with pytest.raises(ValueError, match="knows 5 tokens, the tokenizer 6"):
        Discriminator(larger, small_gpt2(tokenizer, positions=8, width=16))
    with pytest.raises(ValueError, match="compares two sides: got 0 real texts and 1 fake"):
        fitted.fit([], [([GO], [A])], steps=1)
    with pytest.raises(ValueError, match=r"9 tokens.*8 positions"):
        fitted.rewards([([GO] * 6, [A, B, A])])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        fitted.fit([([GO], [A])], [([GO], [B])], steps=0)
