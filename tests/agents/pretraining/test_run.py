"""Pretraining from texts to a folder, with every objective."""

import math
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.generation import generate
from agents.pretraining.documents import Document, split_documents
from agents.pretraining.preference import BAD_TOKEN, GOOD_TOKEN, ObjectiveConfig
from agents.pretraining.run import pretrain, read_record
from agents.pretraining.settings import PretrainConfig, PretrainSettings
from tests.agents.conftest import gpt2_config, largest_gap, weights
from textgen_env.reward import RewardError
from textgen_env.tokenizer import word_tokenizer

TEXTS = [f"{first} {second} {third}" for first in "ab" for second in "cdef" for third in "gh"]
TINY = {"layers": 1, "width": 16, "heads": 2, "device": "cpu"}
WORDS = word_tokenizer("abcdefgh")


def settings(**changes):
    return PretrainSettings(**{**TINY, "block_size": 12, "tokenizer": WORDS, "validation_share": 0.2, **changes})


def fit(**changes):
    return PretrainConfig(**{"epochs": 6, "batch_size": 2, "learning_rate": 1e-2, **changes})


def starts_with_a(completions):
    return [float(text.startswith("a")) for text in completions]


def learned(objective="likelihood", *, epochs=6, micro_batch_tokens=None, changes=None, **options):
    reward = None if objective == "likelihood" else starts_with_a
    config = fit(epochs=epochs, micro_batch_tokens=micro_batch_tokens)
    return pretrain(TEXTS, settings(**(changes or {})), config, ObjectiveConfig(objective, reward, **options))


def all_weights(found):
    return weights(found.policy)


def next_probs(found, ids):
    logits = found.policy.model(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits.softmax(-1).detach()


# ---------------------------------------------------------------- texts to a folder


def test_the_folder_is_one_of_hugging_face(tmp_path):
    """With a tokenizer of its own, on texts of which the model can learn something."""
    texts = [f"The {animal} sees {number} birds." for animal in ("cat", "dog", "fox") for number in range(40)]
    folder = tmp_path / "lm"
    own = settings(output=str(folder), tokenizer=None, vocab_size=280, block_size=32)
    found = pretrain(texts, own, fit(), about={"texts": ["birds.txt"]})
    assert found.finished
    assert found.history[-1]["perplexity"] < 0.3 * found.history[0]["perplexity"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The cat sees", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.eos_token_id  # where a document starts
    assert torch.equal(model(ids).logits, found.policy.model(ids).logits)
    record = read_record(folder)
    assert (record["status"], record["about"]) == ("finished", {"texts": ["birds.txt"]})
    assert record["validation"] == found.history
    assert not (folder / "checkpoint.pt").exists()
    with pytest.raises(FileExistsError, match="is not empty"):
        pretrain(texts, own, fit())
    with pytest.raises(ValueError, match="is finished"):
        pretrain(texts, own, fit(), resume=True)
    # And on from there, on other texts, with its tokenizer.
    more = PretrainSettings(model=str(folder), device="cpu", validation_share=0.0)
    again = pretrain(["The cat sees a dog."] * 4, more, fit(epochs=1))
    assert again.tokenizer.hf.get_vocab() == tokenizer.get_vocab()
    assert largest_gap(weights(model), weights(again.policy.model)) > 0


def test_perplexity_is_that_of_the_plain_model_in_three_units():
    texts = [*TEXTS, "a é", "b é c"]
    found = pretrain(texts, settings(tokenizer=word_tokenizer("abcdefghé"), validation_share=0.4), fit(epochs=1))
    _, held_out = split_documents([Document(text) for text in texts], 0.4)
    assert any("é" in document.text for document in held_out)  # else bytes are characters
    nats = tokens = 0
    for document in held_out:
        ids = [1, *found.tokenizer.hf.encode(document.text), 1]
        log_probs = found.policy.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(log_probs[place, token].detach()) for place, token in enumerate(ids[1:]))
        tokens += len(ids) - 1
    row = found.history[-1]
    characters = sum(len(document.text) for document in held_out)
    size = sum(len(document.text.encode()) for document in held_out)
    assert row["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert row["perplexity_per_character"] == pytest.approx(math.exp(nats / characters), rel=1e-5)
    assert row["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert row["perplexity_per_byte"] == pytest.approx(2 ** row["bits_per_byte"])
    assert row["perplexity_per_byte"] < row["perplexity_per_character"]


def test_the_seed_decides():
    state = torch.get_rng_state()
    first, again = learned(), learned()
    other = learned(changes={"seed": 1})
    assert largest_gap(all_weights(first), all_weights(again)) == 0
    assert largest_gap(all_weights(first), all_weights(other)) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_micro_batches_do_not_change_the_result():
    whole, parts = learned("advantage_weighted"), learned("advantage_weighted", micro_batch_tokens=12)
    assert largest_gap(all_weights(whole), all_weights(parts)) < 1e-4


@pytest.mark.parametrize("objective", ["conditional", "advantage_weighted"])
def test_a_resumed_pretraining_ends_as_an_uninterrupted_one(tmp_path, capsys, objective):
    options = {"threshold": 0.5} if objective == "conditional" else {"beta": 0.5}
    options = ObjectiveConfig(objective, starts_with_a, **options)

    def made(name, **more):
        return pretrain(TEXTS, settings(output=str(tmp_path / name), checkpoint_every=4), fit(), options, **more)

    def stop_in_step_6(step, steps, loss):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = made("whole")
    first = made("cut", on_step=stop_in_step_6)
    assert not first.finished
    assert read_record(tmp_path / "cut")["status"] == "interrupted"
    AutoModelForCausalLM.from_pretrained(tmp_path / "cut")  # what there is is saved
    second = made("cut", resume=True)
    assert second.finished
    assert largest_gap(all_weights(first), all_weights(whole)) > 0
    assert largest_gap(all_weights(second), all_weights(whole)) == 0
    assert second.history == whole.history
    assert read_record(tmp_path / "cut")["validation"] == read_record(tmp_path / "whole")["validation"]


def test_other_texts_cannot_be_gone_on_with(tmp_path, capsys):
    own = settings(output=str(tmp_path / "lm"))

    def stop(step, steps, loss):
        os.kill(os.getpid(), signal.SIGTERM)

    pretrain(TEXTS, own, fit(), on_step=stop)
    with pytest.raises(ValueError, match="saved of other texts or options"):
        pretrain(TEXTS[:-1], own, fit(), resume=True)
    with pytest.raises(ValueError, match="saved of other texts or options"):
        pretrain(TEXTS, own, fit(learning_rate=1e-3), resume=True)
    with pytest.raises(FileNotFoundError, match="no folder of 'textgen pretrain'"):
        pretrain(TEXTS, settings(output=str(tmp_path / "none")), resume=True)


# ---------------------------------------------------------------- objectives


def test_filtering_is_likelihood_on_what_is_kept():
    kept = [text for text in TEXTS if text.startswith("a")]
    filtered = learned("filtering", threshold=0.5, changes={"validation_share": 0.0})
    alone = pretrain(kept, settings(validation_share=0.0), fit())
    assert largest_gap(all_weights(filtered), all_weights(alone)) == 0
    unfiltered = learned(changes={"validation_share": 0.0})
    assert largest_gap(all_weights(unfiltered), all_weights(alone)) > 0


def test_conditional_training_writes_what_it_is_asked_for():
    found = learned("conditional", threshold=0.5, drop_control=0.0, epochs=40)
    good, bad = found.tokenizer.hf.convert_tokens_to_ids([GOOD_TOKEN, BAD_TOKEN])
    a, b = found.tokenizer.hf.convert_tokens_to_ids(["a", "b"])
    assert float(next_probs(found, [1, good])[a]) > 0.9
    assert float(next_probs(found, [1, bad])[b]) > 0.9
    plain = learned(epochs=40)  # must fail: no condition
    assert 0.2 < float(next_probs(plain, [1])[a]) < 0.8


def test_control_tokens_are_never_generated(tmp_path):
    folder = tmp_path / "lm"
    found = learned("conditional", threshold=0.5, changes={"output": str(folder)})
    assert found.prompt == GOOD_TOKEN
    controls = found.tokenizer.hf.convert_tokens_to_ids([GOOD_TOKEN, BAD_TOKEN])
    with torch.no_grad():  # a model that would write nothing else
        found.policy.model.transformer.wte.weight[controls] *= 50
    head = {name: weight.clone() for name, weight in weights(found.policy.model).items()}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.generation_config.suppress_tokens == controls
    loaded.load_state_dict(head)
    ids = torch.tensor([[1, controls[0]]])
    assert int(loaded(ids).logits[0, -1].argmax()) in controls
    written = loaded.generate(ids, max_new_tokens=6, do_sample=True)[0, 2:]
    assert not set(written.tolist()) & set(controls)
    seen = []
    found.policy.model.generation_config.suppress_tokens = controls
    decode = found.tokenizer.decode
    found.tokenizer.decode = lambda ids: seen.extend(ids) or decode(ids)
    generate(found.policy, found.tokenizer, [found.prompt] * 8, max_new_tokens=6, seed=0)
    assert seen
    assert not set(map(int, seen)) & set(controls)
    seen.clear()
    found.policy.model.generation_config.suppress_tokens = None
    generate(found.policy, found.tokenizer, [found.prompt] * 8, max_new_tokens=6, seed=0)
    assert set(map(int, seen)) & set(controls)  # must fail: nothing suppressed


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("unlikelihood", {"threshold": 0.5}),
        ("reward_weighted", {"beta": 0.25}),
        ("advantage_weighted", {"beta": 0.25}),
    ],
)
def test_objectives_prefer_the_good(objective, options):
    a = WORDS.convert_tokens_to_ids("a")
    found, plain = learned(objective, epochs=30, **options), learned(epochs=30)
    assert float(next_probs(found, [1])[a]) > 0.9 > float(next_probs(plain, [1])[a])
    moved = largest_gap(weights(found.policy.value_head), weights(plain.policy.value_head))
    assert (moved > 0) == (objective == "advantage_weighted")  # V is for it alone


def test_sentences_are_judged_one_by_one():
    judged = []

    def short(completions):
        judged.extend(completions)
        return [float(len(text) < 6) for text in completions]

    texts = ["Yes. No. Certainly not!", "Indeed so. Why?"]
    own = settings(tokenizer=None, vocab_size=270, validation_share=0.0, block_size=64)
    options = ObjectiveConfig("conditional", short, segments="sentence", threshold=0.5, drop_control=0.0)
    pretrain(texts, own, fit(epochs=1), options)
    assert judged == ["Yes.", " No.", " Certainly not!", "Indeed so.", " Why?"]


def test_a_reward_sees_the_columns_of_a_record():
    def rating(completions, stars):
        return [number / 5 for number in stars]

    documents = [Document(text, {"stars": 5 if text.startswith("a") else 1}) for text in TEXTS]
    by_column = pretrain(documents, settings(), fit(), ObjectiveConfig("filtering", rating, threshold=0.5))
    assert largest_gap(all_weights(by_column), all_weights(learned("filtering", threshold=0.5))) == 0
    with pytest.raises(RewardError, match="wants an argument 'stars'"):
        pretrain(TEXTS, settings(), fit(), ObjectiveConfig("filtering", rating, threshold=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "conditionl"}, "did you mean 'conditional'"),
        ({"objective": "conditional", "threshold": 0.5}, "say --reward"),
        ({"objective": "conditional", "reward": starts_with_a}, "say --threshold"),
        ({"objective": "likelihood", "threshold": 0.5}, "threshold has no effect on the objective 'likelihood'"),
        (
            {"objective": "reward_weighted", "reward": starts_with_a, "policy_share": 0.1},
            "it is for advantage_weighted",
        ),
        ({"objective": "reward_weighted", "reward": starts_with_a, "beta": 0.0}, "beta must be above 0"),
        ({"objective": "conditional", "reward": starts_with_a, "threshold": 0.5, "drop_control": 2.0}, "must lie in"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**options)


def test_a_threshold_that_tells_nothing_apart_is_refused():
    with pytest.raises(ValueError, match=r"no segment is good at the threshold 2 .*rewards from 0 to 1, quartiles"):
        learned("conditional", threshold=2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"model": "gpt2", "width": 32}, "has its own width"),
        ({"model": "gpt2", "vocab_size": 300}, "has its own vocab_size"),
        ({"tokenizer": "gpt2", "vocab_size": 300}, "tokenizer 'gpt2' has its own vocab_size"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PretrainSettings(**changes)


def test_documents_are_texts_that_are_not_empty():
    with pytest.raises(TypeError, match="a list of texts, not one"):
        pretrain("abc", settings())
    with pytest.raises(ValueError, match="a document is empty"):
        pretrain([*TEXTS, ""], settings())


def test_a_model_is_asked_what_it_can_do():
    model = gpt2_config(vocab_size=10, positions=8)
    with pytest.raises(ValueError, match="comes without a tokenizer"):
        pretrain(TEXTS, PretrainSettings(model=model, device="cpu"))
    with pytest.raises(ValueError, match="has only 8 positions"):
        pretrain(TEXTS, PretrainSettings(model=model, tokenizer=WORDS, device="cpu", block_size=9))
    # Two control tokens more than the model knows: its embeddings grow, by the seed.
    own = PretrainSettings(model=model, tokenizer=WORDS, device="cpu", validation_share=0.0)
    state = torch.get_rng_state()
    found = pretrain(TEXTS, own, fit(epochs=1), ObjectiveConfig("conditional", starts_with_a, threshold=0.5))
    assert found.policy.model.get_input_embeddings().weight.shape[0] == 12
    assert torch.equal(torch.get_rng_state(), state)
