"""Similarity of meaning against the formulas, one text at a time."""

import pytest
import torch

from reward_models import BertScore, SemanticSimilarity
from tests.reward_models import tiny_models as tiny
from textgen_env import resolve_reward

REFERENCES = [[text] for text in tiny.TEXTS[::-1]]
ONE_TOKEN = (1, 2)  # [CLS] and [SEP]


def make(reward, **settings):
    return reward(tiny.bert(), tokenizer=tiny.encoder_tokenizer(), batch_size=3, **settings)


def plain(text, layer=-1):
    """Token ids and states of one text, by transformers alone."""
    encoded = tiny.encoder_tokenizer()(text, return_tensors="pt")
    with torch.no_grad():
        states = tiny.bert()(**encoded, output_hidden_states=True).hidden_states[layer][0]
    return encoded.input_ids[0].tolist(), states


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_similarity_is_the_cosine_of_pooled_states(pooling):
    def pool(text):
        states = plain(text)[1]
        return states.mean(0) if pooling == "mean" else states[0]

    expected = [cosine(pool(a), pool(b)) for a, (b,) in zip(tiny.TEXTS, REFERENCES, strict=True)]
    scores = make(SemanticSimilarity, pooling=pooling)(completions=tiny.TEXTS, references=REFERENCES)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert scores[len(scores) // 2] == pytest.approx(1)  # the middle one is its own reference
    assert min(scores) < 0.9


def test_the_pooled_padding_would_be_seen():
    """The twin that forgets the mask: a text beside a longer one would have another embedding."""
    long, short = tiny.TEXTS[2], tiny.TEXTS[1]
    encoded = tiny.encoder_tokenizer()([long, short], return_tensors="pt", padding=True)
    with torch.no_grad():
        careless = tiny.bert()(**encoded).last_hidden_state.mean(1)[1]
    assert cosine(careless, make(SemanticSimilarity).embed([long, short])[1]) < 1 - 1e-4


def test_embeddings_are_unit_vectors_in_order():
    embeddings = make(SemanticSimilarity).embed(tiny.TEXTS)
    assert embeddings.shape == (len(tiny.TEXTS), 16)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(tiny.TEXTS)))
    assert cosine(embeddings[3], plain(tiny.TEXTS[3])[1].mean(0)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="a blank text has no embedding"):
        make(SemanticSimilarity).embed(["cat", " "])


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("measure", ["precision", "recall", "f1"])
def test_bert_score_is_greedy_matching(layer, measure):
    """Zhang et al. (2020), section 3, in plain loops; the ends are matched, not counted."""

    def expected(completion, reference):
        (y_ids, y), (x_ids, x) = plain(completion, layer), plain(reference, layer)
        recall = [max(cosine(a, b) for b in y) for i, a in zip(x_ids, x, strict=True) if i not in ONE_TOKEN]
        precision = [max(cosine(a, b) for b in x) for i, a in zip(y_ids, y, strict=True) if i not in ONE_TOKEN]
        r, p = sum(recall) / len(recall), sum(precision) / len(precision)
        return {"precision": p, "recall": r, "f1": 2 * p * r / (p + r)}[measure]

    score = make(BertScore, layer=layer, measure=measure)
    values = score(completions=tiny.TEXTS, references=REFERENCES)
    wanted = [expected(a, b) for a, (b,) in zip(tiny.TEXTS, REFERENCES, strict=True)]
    assert values == pytest.approx(wanted, abs=1e-5)
    assert score.name == ("bert_score" if measure == "f1" else f"bert_score_{measure}")


@pytest.mark.parametrize("reward", [SemanticSimilarity, BertScore])
def test_several_references(reward):
    text, many = tiny.TEXTS[0], tiny.TEXTS[1:4]
    each = [make(reward)([text], [[one]])[0] for one in many]
    assert make(reward)([text], [many]) == pytest.approx([max(each)], abs=1e-6)
    assert make(reward, aggregate="mean")([text], [many]) == pytest.approx([sum(each) / 3], abs=1e-6)
    assert max(each) - min(each) > 0.01


@pytest.mark.parametrize("reward", [SemanticSimilarity, BertScore])
def test_a_text_that_stands_many_times_is_encoded_once(reward, monkeypatch):
    scorer = make(reward)
    encode, seen = scorer._batched.encode, []
    monkeypatch.setattr(scorer._batched, "encode", lambda texts: seen.extend(texts) or encode(texts))
    scorer(["a cat", "a dog", "a cat"], [["the cat"], ["the cat"], ["a dog"]])
    assert seen == ["a cat", "a dog", "the cat"]


@pytest.mark.parametrize("reward", [SemanticSimilarity, BertScore])
@pytest.mark.parametrize("text", ["", "  \n", "🙂👩‍👩‍👧", "a\x00b", "cat " * 10_000])
def test_any_text_is_scored_and_a_blank_one_is_like_nothing(reward, text):
    scorer = make(reward)
    score, backwards = scorer([text, "the cat"], [["the cat"], [text]])
    assert -1 <= score <= 1
    assert -1 <= backwards <= 1
    assert (score == backwards == 0) == (not text.strip())


def test_the_same_text_scores_exactly_within_the_bounds():
    assert all(score <= 1 for score in make(SemanticSimilarity)(tiny.TEXTS, [[text] for text in tiny.TEXTS]))
    assert make(BertScore)(tiny.TEXTS, [[text] for text in tiny.TEXTS]) == pytest.approx([1] * len(tiny.TEXTS))


@pytest.mark.parametrize(
    ("reward", "settings", "message"),
    [
        (SemanticSimilarity, {"pooling": "men"}, "did you mean 'mean'"),
        (SemanticSimilarity, {"aggregate": "maxx"}, "did you mean 'max'"),
        (BertScore, {"measure": "f2"}, "did you mean 'f1'|Known: f1"),
        (BertScore, {"layer": 3}, r"layers 0 \(the embeddings\) to 2, got layer=3"),
    ],
)
def test_unknown_settings_name_the_mend(reward, settings, message):
    with pytest.raises(ValueError, match=message):
        make(reward, **settings)


def test_references_are_wanted():
    with pytest.raises(ValueError, match="completion number 1 has none"):
        make(SemanticSimilarity)(["a", "b"], [["a"], []])
    with pytest.raises(TypeError, match="got the string 'abc'"):
        make(BertScore)(["abc"], ["abc"])


def test_they_compose():
    mixture = resolve_reward(0.5 * make(SemanticSimilarity) + 0.5 * make(BertScore))
    assert mixture.component_names == ("semantic_similarity", "bert_score")
