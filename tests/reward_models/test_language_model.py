"""Log-likelihoods in batches against a plain loop, one text and one token at a time."""

import math

import pytest
import torch

from reward_models import ConditionalLikelihood, Fluency, Perplexity
from reward_models.language_model import LanguageModel, windows
from tests.reward_models import tiny_models as tiny
from textgen_env import resolve_reward
from textgen_env.types import Completion, Prompt

PROMPTS = [
    "the dog",
    "",
    "all night long the rain fell on the old house and",
    "rain",
    "a",
    "the cat sat on\n",
    "the old ",
]


def model_of(family):
    return getattr(tiny, family)()


def loop(model, context, text):
    """Σ log p(text_t | context, text_<t): the whole prefix through the model for every token."""
    total = 0.0
    with torch.no_grad():
        for t, token in enumerate(text):
            logits = model(input_ids=torch.tensor([context + text[:t]])).logits[0, -1]
            total += logits.log_softmax(-1)[token].item()
    return total


def plain_ids(context, text):
    """The tokens that should be scored, for tiny's tokenizer: bytes and merges, no start token of its own."""
    tokenizer = tiny.lm_tokenizer()
    apart = " " if context and not context[-1].isspace() else ""
    before = tokenizer(context)["input_ids"]
    both = tokenizer(context + apart + text)["input_ids"]
    after = both[len(before) :] if before and both[: len(before)] == before else tokenizer(apart + text)["input_ids"]
    return before or [tokenizer.eos_token_id], after


@pytest.mark.parametrize("measure", ["mean", "total"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_likelihood_is_that_of_a_plain_loop(family, batch_size, measure):
    model, tokenizer = model_of(family), tiny.lm_tokenizer()
    texts = [text[:40] for text in tiny.TEXTS]
    settings = {"tokenizer": tokenizer, "batch_size": batch_size}
    rows = {
        "alone": [plain_ids("", text) for text in texts],
        "after": [plain_ids(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True)],
    }
    expected = {
        name: [loop(model, *row) / (len(row[1]) if measure == "mean" else 1) for row in pairs]
        for name, pairs in rows.items()
    }
    assert Fluency(model, measure, **settings)(completions=texts) == pytest.approx(expected["alone"], abs=1e-5)
    after = ConditionalLikelihood(model, measure, **settings)(completions=texts, prompts=PROMPTS)
    assert after == pytest.approx(expected["after"], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(expected["alone"], expected["after"], strict=True)) > 0.01


def test_an_empty_text_is_the_event_that_nothing_follows():
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    end = tokenizer.eos_token_id
    alone = loop(model, [end], [end])
    assert Fluency(model, tokenizer=tokenizer)([""]) == pytest.approx([alone], abs=1e-5)
    assert Fluency(model, "total", tokenizer=tokenizer)([""]) == pytest.approx([alone], abs=1e-5)
    after = ConditionalLikelihood(model, tokenizer=tokenizer)([""], ["the dog"])
    assert after == pytest.approx([loop(model, tokenizer("the dog")["input_ids"], [end])], abs=1e-5)
    assert alone < -0.1  # not the best score there is, which nothing at all would be


def test_the_end_may_be_scored_with_the_text():
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    start, text = plain_ids("", "the cat")
    open_end = Fluency(model, "total", tokenizer=tokenizer)(["the cat"])[0]
    closed = Fluency(model, "total", end=True, tokenizer=tokenizer)(["the cat"])[0]
    assert closed == pytest.approx(loop(model, start, [*text, tokenizer.eos_token_id]), abs=1e-5)
    assert closed < open_end


def test_perplexity_is_the_exponential():
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    mean = Fluency(model, tokenizer=tokenizer)(tiny.TEXTS)
    assert Perplexity(model, tokenizer=tokenizer)(tiny.TEXTS) == pytest.approx([math.exp(-score) for score in mean])


def test_a_token_across_the_boundary_is_cut_there():
    """ "the ol" + "d house": together "old" may be one token; the prompt's tokens must stay as they are."""
    lm = LanguageModel(tiny.gpt2(), tiny.lm_tokenizer())
    for prompt, text in (("the old ", "house"), ("the cat\n", "sat"), ("rain", "fell"), ("rain", " fell")):
        ((context, ids),) = lm.continuations([prompt], [text])
        assert context == tiny.lm_tokenizer()(prompt)["input_ids"]
        apart = "" if prompt[-1].isspace() or text[0].isspace() else " "
        assert tiny.lm_tokenizer().decode(context + ids) == prompt + apart + text


@pytest.mark.parametrize(("start", "length"), [(1, 4), (1, 5), (3, 4), (6, 4), (9, 4), (1, 2), (5, 40)])
def test_windows_score_each_token_once_after_enough_of_what_stands_before(start, length):
    ids = list(range(10))
    seen = []
    for window, count in windows(ids, start, length):
        assert len(window) <= length
        assert window == list(range(window[0], window[-1] + 1))
        first = window[-count]
        assert first - window[0] >= min(first, length - length // 2)
        seen += window[-count:]
    assert seen == ids[start:]


def test_a_text_beyond_the_positions_is_read_to_its_end():
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    long = " ".join(tiny.TEXTS * 3)
    start, text = plain_ids("", long)
    assert len(text) > 2 * tiny.POSITIONS
    ids, half = start + text, tiny.POSITIONS // 2
    expected, at = 0.0, 1
    while at < len(ids):  # the same windows, one token at a time
        stop = min(len(ids), max(tiny.POSITIONS, at + half))
        begin = max(0, stop - tiny.POSITIONS)
        expected += loop(model, ids[begin:at], ids[at:stop])
        at = stop
    assert Fluency(model, "total", tokenizer=tokenizer)([long]) == pytest.approx([expected], rel=1e-5)
    short_prompt = ConditionalLikelihood(model, tokenizer=tokenizer)(["the cat"], [long])
    assert math.isfinite(short_prompt[0])


def test_logits_of_the_prompt_are_left_out_with_the_same_result():
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    scorer = ConditionalLikelihood(model, tokenizer=tokenizer)
    wanted = scorer(tiny.TEXTS[:2], ["the dog ran to the house", "rain fell"])
    assert scorer._lm._keeps_logits
    scorer._lm._keeps_logits = False
    assert scorer(tiny.TEXTS[:2], ["the dog ran to the house", "rain fell"]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("text", ["", "  ", "🙂👩‍👩‍👧", "a\x00b", "x" * 5_000, "\u202e\ufeff\n\r"])
def test_any_text_has_a_likelihood(text):
    scores = Fluency(tiny.gpt2(), tokenizer=tiny.lm_tokenizer())([text, "the cat"])
    assert all(math.isfinite(score) and score < 0 for score in scores)


def test_wrong_arguments_name_the_mend(monkeypatch):
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        Fluency(model, "means", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        Fluency(model, tokenizer=tokenizer, max_length=1)
    with pytest.raises(TypeError, match=r"completions\[1\] is float"):
        Fluency(model, tokenizer=tokenizer)(["a", 1.0])
    with pytest.raises(ValueError, match="2 completions and 1 prompts"):
        ConditionalLikelihood(model, tokenizer=tokenizer)(["a", "b"], ["c"])
    bare = tiny.encoder_tokenizer()  # it knows no BOS and no EOS
    with pytest.raises(ValueError, match=r"neither a BOS nor an EOS token: set tokenizer\.bos_token"):
        Fluency(model, tokenizer=bare)


def test_it_is_a_reward_with_operators():
    model, tokenizer = tiny.gpt2(), tiny.lm_tokenizer()
    mixture = resolve_reward(Fluency(model, tokenizer=tokenizer) - 0.1 * Perplexity(model, tokenizer=tokenizer))
    batch = [Completion(Prompt("say"), text, (1, 2), "eos") for text in tiny.TEXTS]
    scores = mixture.score(batch)
    assert set(scores.components) == {"fluency", "perplexity"}
    raw = Fluency(model, tokenizer=tokenizer)(tiny.TEXTS)
    assert scores.components["fluency"]["raw"].tolist() == pytest.approx(raw)


def test_a_real_model_prefers_a_real_story(shared_data):
    stories = Fluency(shared_data("stories260K/hf"), device="cpu")
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    shuffled = "Lily time, outside. a upon little She was named there play girl to loved Once a"
    real, mixed = stories([story, shuffled])
    assert real > -2 > mixed
