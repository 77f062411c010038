"""The scorer itself: where the score is read, padding, cutting, normalising, saving, other architectures."""

import copy
import math

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from reward_models import Rouge
from reward_models.preference import RewardModel, load
from reward_models.preference.source import head_of, load_scorer
from tests.reward_models.tiny_models import TEXTS, encoder_tokenizer, lm_tokenizer
from textgen_env import Completion, Prompt, resolve_reward

PROMPTS = ["the cat", "a dog and a cat ran all night long", "", "rain"]
COMPLETIONS = ["sat on the mat", "fell", "night fell on the old house", ""]


def small(seed=0, **options):
    sizes = {"vocab_size": 300, "width": 16, "layers": 2, "heads": 2, "max_length": 64, "device": "cpu"}
    return RewardModel.small(TEXTS * 4, seed=seed, **{**sizes, **options})


def bert_config(**settings):
    return BertConfig(
        vocab_size=len(encoder_tokenizer()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.5,
        pad_token_id=0,
        **settings,
    )


def gpt2_config():
    return GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5)


@pytest.fixture(scope="module")
def model():
    return small()


def test_the_score_is_read_at_the_eos(model):
    """Against the trunk and the head by hand, a text at a time, without any padding."""
    scores = model(COMPLETIONS, PROMPTS)
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        ids = model.encoder.encode(prompt, completion).input_ids
        assert ids[-1] == model.tokenizer.eos_token_id
        with torch.no_grad():
            at_every_token = model.model.score(model.model.model(torch.tensor([ids])).last_hidden_state)[0, :, 0]
        assert score == pytest.approx(float(at_every_token[-1]), abs=1e-5)
        if len(ids) > 2:  # must fail: one token earlier
            assert score != pytest.approx(float(at_every_token[-2]), abs=1e-3)


def test_neighbours_and_batches_do_not_matter(model):
    together = model(COMPLETIONS, PROMPTS)
    alone = [model([completion], [prompt])[0] for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert model(COMPLETIONS[::-1], PROMPTS[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert model([], []) == []


def test_the_prompt_matters(model):
    assert model(["fell"], ["rain"]) != pytest.approx(model(["fell"], ["night"]), abs=1e-4)


@pytest.mark.parametrize("make", ["decoder", "causal LM", "encoder"])
def test_save_and_load_and_hugging_face_agree(make, tmp_path):
    """The folder is transformers' own: its classifier gives the same logits from rows that its tokenizer pads."""
    if make == "decoder":
        model = small()
    elif make == "causal LM":
        model = RewardModel(GPT2LMHeadModel(gpt2_config()), lm_tokenizer(), device="cpu")
    else:
        model = RewardModel(bert_config(), encoder_tokenizer(), device="cpu")
    model.normalise(PROMPTS, COMPLETIONS)
    model.save(tmp_path / "rm")
    before = model(COMPLETIONS, PROMPTS)
    loaded = load(tmp_path / "rm", device="cpu")
    assert loaded(COMPLETIONS, PROMPTS) == pytest.approx(before, abs=1e-6)
    assert loaded.name == "rm"
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    rows = [model.encoder.encode(*pair) for pair in zip(PROMPTS, COMPLETIONS, strict=True)]
    features = [{"input_ids": row.input_ids, "token_type_ids": row.token_type_ids} for row in rows]
    if rows[0].token_type_ids is None:
        features = [{"input_ids": row.input_ids} for row in rows]
    with torch.no_grad():
        logits = theirs(**tokenizer.pad(features, return_tensors="pt")).logits[:, 0]
    config = theirs.config
    assert (logits * config.reward_gain + config.reward_bias).tolist() == pytest.approx(before, abs=1e-5)


def test_padding_that_is_eos_would_move_the_score(model):
    """Must fail: transformers looks for the last token that is not padding, so an EOS as padding hides the EOS."""
    broken = copy.deepcopy(model)
    broken.model.config.pad_token_id = broken.tokenizer.eos_token_id
    assert broken(COMPLETIONS[:1], PROMPTS[:1]) != pytest.approx(model(COMPLETIONS[:1], PROMPTS[:1]), abs=1e-4)


def test_a_tokenizer_without_padding_gets_one():
    tokenizer = copy.deepcopy(lm_tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    model = RewardModel(GPT2LMHeadModel(gpt2_config()), tokenizer, device="cpu")
    assert model.tokenizer.pad_token_id != model.tokenizer.eos_token_id
    assert model.model.config.pad_token_id == model.tokenizer.pad_token_id
    assert tokenizer.pad_token == tokenizer.eos_token  # the caller's own is not touched
    together = model(COMPLETIONS, PROMPTS)
    assert together[3] == pytest.approx(model(COMPLETIONS[3:], PROMPTS[3:])[0], abs=1e-5)


def test_a_fresh_head_has_the_papers_spread():
    shape = {"vocab_size": 10, "n_positions": 8, "n_embd": 4096, "n_layer": 0, "n_head": 2}
    wide = load_scorer(GPT2Config(**shape, bos_token_id=1, eos_token_id=1))
    assert float(head_of(wide).weight.detach().std()) == pytest.approx(1 / math.sqrt(4097), rel=0.05)


def test_seeds_draw_heads_and_leave_the_global_generator_alone(tmp_path):
    GPT2LMHeadModel(gpt2_config()).save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    first, again, other = (head_of(load_scorer(tmp_path, seed)).weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_objects_give_their_trunk_or_themselves():
    trunk = BertModel(bert_config())
    made = load_scorer(trunk)
    assert torch.equal(made.bert.embeddings.word_embeddings.weight, trunk.embeddings.word_embeddings.weight)
    classifier = BertForSequenceClassification(bert_config(num_labels=1))
    assert load_scorer(classifier) is classifier
    two = BertForSequenceClassification(bert_config(num_labels=2))
    assert head_of(load_scorer(two)).out_features == 1


def test_normalised_scores_have_mean_0_and_deviation_1(model):
    twin = copy.deepcopy(model)
    raw = twin(COMPLETIONS, PROMPTS)
    twin.normalise(PROMPTS, COMPLETIONS)
    scores = torch.tensor(twin(COMPLETIONS, PROMPTS), dtype=torch.float64)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-9)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-9)
    assert sorted(range(4), key=raw.__getitem__) == sorted(range(4), key=scores.tolist().__getitem__)
    with pytest.raises(ValueError, match="equal scores"):
        twin.normalise(["a", "a"], ["b", "b"])


@pytest.mark.parametrize(
    ("side", "prompt", "completion", "kept"),
    [
        ("right", "a b c d e f", "x", "abcd|x"),
        ("left", "a b c d e f", "x", "cdef|x"),
        ("right", "a", "u v w x y z", "a|uvwx"),
        ("right", "a b c d e f", "u v w x y z", "abc|uv"),
    ],
)
def test_the_longer_part_is_cut_and_the_eos_stays(side, prompt, completion, kept):
    model = small(max_length=6)
    model.tokenizer.truncation_side = side
    model.encoder._text.hf = model.tokenizer
    words = {word: index + 10 for index, word in enumerate("abcdefuvwxyz")}
    model.encoder._text.encode_prompt = lambda text: torch.tensor([words[word] for word in text.split()])
    model.encoder._text.encode_completion = lambda _, text: torch.tensor([*(words[w] for w in text.split()), 1])
    with pytest.warns(UserWarning, match="is cut to the reward model's 6"):
        ids = model.encoder.encode(prompt, completion).input_ids
    head, body = kept.split("|")
    assert ids == [*(words[word] for word in head + body), 1]


def test_an_encoder_cuts_too():
    model = RewardModel(bert_config(), encoder_tokenizer(), device="cpu")
    with pytest.warns(UserWarning, match="is cut to"):
        row = model.encoder.encode("the cat sat " * 20, "rain fell")
    assert len(row.input_ids) == 24
    assert model.tokenizer.decode(row.input_ids).endswith("rain fell [SEP]")


def test_it_is_a_reward_by_object_and_by_folder_and_adds_up(model, tmp_path):
    completions = [Completion(Prompt("the cat", ("sat",)), "sat on", (3, 4), "eos")]
    alone = resolve_reward(model).score(completions)
    assert alone.components["reward_model"]["raw"][0] == pytest.approx(model(["sat on"], ["the cat"])[0])
    model.save(tmp_path / "helpful")
    by_folder = resolve_reward(str(tmp_path / "helpful")).score(completions)
    assert by_folder.components["helpful"]["raw"][0] == pytest.approx(alone.components["reward_model"]["raw"][0])
    mixed = (0.5 * model + 0.5 * Rouge("L")).score(completions)
    assert set(mixed.components) == {"reward_model", "rouge_l"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: RewardModel(gpt2_config()), ValueError, "comes without a tokenizer"),
        (lambda m: RewardModel(3, lm_tokenizer()), TypeError, "not int"),
        (lambda m: small(max_length=3), ValueError, "max_length=3"),
        (lambda m: small(width=10, heads=4), ValueError, "even multiple of heads=4"),
        (lambda m: m(["a"], ["b", "c"]), ValueError, "as many of each"),
        (lambda m: m([None], ["b"]), TypeError, r"completions\[0\] is NoneType"),
        (lambda m: load("no/such/folder"), FileNotFoundError, "no reward model's folder"),
    ],
)
def test_bad_input_is_refused(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_a_model_without_a_fitted_head_does_not_score(tmp_path):
    GPT2LMHeadModel(gpt2_config()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"no reward model yet: its weights have no score.weight for one .* 'textgen reward train --model",
    ):
        load(tmp_path)


def test_broken_weights_are_no_score(model):
    broken = copy.deepcopy(model)
    head_of(broken.model).weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="broken weights"):
        broken(["a"], ["b"])
