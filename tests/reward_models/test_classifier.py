"""A classifier's label as a reward: the number transformers itself would give."""

import math

import pytest
import torch

import reward_models
from reward_models import Classifier
from tests.reward_models import tiny_models as tiny
from textgen_env import resolve_reward
from textgen_env.types import Completion, Prompt

LABELS = {
    "id2label": {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"},
    "label2id": {"NEGATIVE": 0, "NEUTRAL": 1, "POSITIVE": 2},
}


def make(label="POSITIVE", output="probability", *, config=None, **settings):
    model = tiny.bert_classifier(**(LABELS if config is None else config))
    return Classifier(model, label, output, tokenizer=tiny.encoder_tokenizer(), batch_size=3, **settings)


def plain_logits(texts, pairs=None, config=None):
    """One at a time, by transformers alone."""
    model, tokenizer = tiny.bert_classifier(**(LABELS if config is None else config)), tiny.encoder_tokenizer()
    rows = zip(texts, pairs, strict=True) if pairs else ((text,) for text in texts)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*row, return_tensors="pt")).logits for row in rows])


@pytest.mark.parametrize(
    ("output", "read"),
    [
        ("probability", lambda logits: logits.softmax(-1)),
        ("log_probability", lambda logits: logits.log_softmax(-1)),
        ("logit", lambda logits: logits),
    ],
)
def test_softmax_over_the_labels(output, read):
    scores = make(output=output)(completions=tiny.TEXTS)
    expected = read(plain_logits(tiny.TEXTS))[:, 2].tolist()
    assert scores == pytest.approx(expected, abs=1e-5)
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize("output", ["probability", "log_probability"])
def test_several_labels_at_once_have_a_sigmoid_each(output):
    config = {**LABELS, "problem_type": "multi_label_classification"}
    probabilities = plain_logits(tiny.TEXTS, config=config).sigmoid()[:, 2]
    expected = (probabilities if output == "probability" else probabilities.log()).tolist()
    assert make(output=output, config=config)(tiny.TEXTS) == pytest.approx(expected, abs=1e-5)
    assert make()(tiny.TEXTS) != pytest.approx(make(config=config)(tiny.TEXTS), abs=1e-2)


def test_a_regression_gives_its_raw_output():
    rating = make(None, config={"num_labels": 1})
    assert rating(tiny.TEXTS) == pytest.approx(
        plain_logits(tiny.TEXTS, config={"num_labels": 1})[:, 0].tolist(), abs=1e-5
    )
    assert (rating.name, rating.bounds) == ("classifier", None)


def test_a_pair_has_the_premise_first():
    premises = tiny.TEXTS[::-1]
    scores = make(premise="prompt")(completions=tiny.TEXTS, prompts=premises)
    assert scores == pytest.approx(plain_logits(premises, tiny.TEXTS).softmax(-1)[:, 2].tolist(), abs=1e-5)
    swapped = plain_logits(tiny.TEXTS, premises).softmax(-1)[:, 2].tolist()
    assert scores != pytest.approx(swapped, abs=1e-3)


def test_the_best_of_several_references_counts():
    entailment = make(premise="reference")
    text, references = tiny.TEXTS[0], tiny.TEXTS[1:4]
    each = [entailment([text], references=[[one]])[0] for one in references]
    assert len(set(each)) == 3
    both = entailment([text, text], references=[references, references[:1]])
    assert both == pytest.approx([max(each), each[0]], abs=1e-5)


def test_a_template_writes_prompt_and_completion_and_leaves_other_braces_alone():
    shown = make(template='{"a"} {prompt} and {completion}')(completions=["cat"], prompts=["the {completion} dog"])
    assert shown == pytest.approx(make()(['{"a"} the {completion} dog and cat']), abs=1e-5)
    plain = make(template="the {completion}")(["cat", "dog"])
    assert plain == pytest.approx(make()(["the cat", "the dog"]), abs=1e-5)


def test_a_causal_classifier_is_scored_in_batches_without_a_padding_id_of_its_own():
    model, tokenizer = tiny.gpt2_classifier(), tiny.lm_tokenizer()
    assert model.config.pad_token_id is None
    with torch.no_grad():
        rows = [model(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits[0] for text in tiny.TEXTS]
    alone = [row.softmax(-1)[1].item() for row in rows]
    scorer = Classifier(model, 1, tokenizer=tokenizer, batch_size=4)
    assert scorer(tiny.TEXTS) == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.01


def test_from_a_folder_and_through_an_environment_s_checks(tmp_path):
    tiny.bert_classifier(**LABELS).save_pretrained(tmp_path)
    tiny.encoder_tokenizer().save_pretrained(tmp_path)
    sentiment = Classifier(tmp_path, "positive", device="cpu")
    assert (sentiment.name, sentiment.kind, sentiment.bounds) == ("positive", "terminal", (0.0, 1.0))
    batch = [Completion(Prompt("say"), text, (1,), "eos") for text in tiny.TEXTS]
    assert resolve_reward(-1.0 * sentiment).score(batch).totals.tolist() == pytest.approx(
        [-s for s in make()(tiny.TEXTS)]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "POSITVE"}, "no label 'POSITVE'; did you mean 'POSITIVE'"),
        ({"label": None}, "one of NEGATIVE, NEUTRAL, POSITIVE"),
        ({"label": 3}, "label 3 is not one of the model's 3"),
        ({"output": "probabilty"}, "did you mean 'probability'"),
        ({"premise": "prompts"}, "did you mean 'prompt'"),
        ({"template": "Review:"}, "no '{completion}'"),
    ],
)
def test_unknown_settings_name_the_mend(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_missing_columns_are_asked_for():
    with pytest.raises(ValueError, match="call it with prompts="):
        make(premise="prompt")(["cat"])
    with pytest.raises(ValueError, match="call it with prompts="):
        make(template="{prompt} {completion}")(["cat"])
    with pytest.raises(ValueError, match="call it with references="):
        make(premise="reference")(["cat"])
    with pytest.raises(TypeError, match=r"completions\[0\] is bytes"):
        make()([b"cat"])


@pytest.mark.parametrize("text", ["", " ", "🙂👩‍👩‍👧", "a\x00b", "cat " * 25_000, "\u202e\ufeff\n\r"])
def test_any_text_has_a_probability(text):
    (score,) = make()([text])
    assert 0 <= score <= 1
    assert math.isfinite(score)


def test_an_unknown_export_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        _ = reward_models.Clasifier
