"""BLEU, chrF, TER and METEOR: the libraries' own figures, per text and over a corpus."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import nltk.corpus
import pytest
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import meteor_score
from sacrebleu.metrics import BLEU, CHRF, TER

from reward_models import Bleu, Chrf, Meteor, Rouge, Ter, corpus_scores
from tests.reward_models.shared_data import records
from textgen_env import resolve_reward

TEXTS = ["The cats sat on the mat.", "a big dog runs", "the mat on cat the sat", "", "wholly different words", "¡Olé!"]
REFERENCES = [
    ["The cat sat on the mat.", "On the mat sat a cat."],
    ["A big dog is running.", "the dog runs, big", "dogs run"],
    ["the cat sat on the mat"],
    ["something"],
    ["nothing in common here", ""],
    ["¡Olé!"],
]


def captions() -> tuple[list[str], list[list[str]]]:
    """Real sentences against several others of their kind: neighbours in one language and the next one over."""
    rows = records("multi30k/val.jsonl", 60)
    texts = [row["fr"] if at % 3 else row["en"] for at, row in enumerate(rows)]
    return texts, [[rows[at - 1]["en"], row["fr"]][: 1 + at % 2] for at, row in enumerate(rows)]


def concepts() -> tuple[list[str], list[list[str]]]:
    rows = [row for row in records("commongen/dev.jsonl", 120) if len(row["references"]) > 2]
    return [row["references"][0] for row in rows], [row["references"][1:] for row in rows]


PAIRS = {"written": lambda: (TEXTS, REFERENCES), "captions": captions, "concepts": concepts}


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize(
    ("reward", "metric", "factor"),
    [
        (Bleu(), BLEU(effective_order=True), 0.01),
        (Bleu("floor", smooth_value=0.3), BLEU(effective_order=True, smooth_method="floor", smooth_value=0.3), 0.01),
        (Bleu("add-k", max_order=2), BLEU(effective_order=True, smooth_method="add-k", max_ngram_order=2), 0.01),
        (Bleu("none", lowercase=True), BLEU(effective_order=True, smooth_method="none", lowercase=True), 0.01),
        (Chrf(), CHRF(), 0.01),
        (Chrf(word_order=2, lowercase=True), CHRF(word_order=2, lowercase=True), 0.01),
        (Ter(), TER(), -0.01),
        (Ter(case_sensitive=True, normalized=True), TER(case_sensitive=True, normalized=True), -0.01),
    ],
    ids=["bleu", "bleu-floor", "bleu-add-k", "bleu-none", "chrf", "chrf++", "ter", "ter-case"],
)
def test_parity_with_sacrebleu(reward: Any, metric: Any, factor: float, pairs: str) -> None:
    texts, references = PAIRS[pairs]()
    expected = [factor * metric.sentence_score(text, own).score for text, own in zip(texts, references, strict=True)]
    scores = reward(completions=texts, references=references)
    assert scores == pytest.approx(expected, abs=1e-9)
    assert len(set(scores)) > 2
    if reward.bounds:
        assert all(reward.bounds[0] <= score <= reward.bounds[1] for score in scores)


def test_what_the_options_change() -> None:
    pair = (["the cat lay"], [["the cat sat on a mat"]])
    assert len({Bleu(smoothing)(*pair)[0] for smoothing in ("exp", "floor", "add-k", "none")}) == 4
    assert Bleu("none")(*pair) == [0.0]  # no trigram matches
    assert Chrf()(*pair) != Chrf(word_order=2)(*pair)
    assert Bleu(tokenize="zh")(["我喜欢大猫"], [["我喜欢大狗"]])[0] > Bleu()(["我喜欢大猫"], [["我喜欢大狗"]])[0]


def test_ter_is_a_reward_so_higher_is_better() -> None:
    references = [["the cat sat on the mat"]] * 3
    perfect, moved, long = Ter()(["the cat sat on the mat", "on the mat the cat sat", "no " * 12], references)
    # A phrase that moves is one edit; a long text can need more edits than the reference has words.
    assert (perfect, moved, long) == (0.0, pytest.approx(-1 / 6), -2.0)
    assert str(perfect) == "0.0"
    assert Ter().bounds is None


def test_ter_refuses_what_would_take_minutes() -> None:
    long = "word " * 600
    assert Ter()([long], [["word"]]) == [-599.0]  # one short side is quick
    with pytest.raises(ValueError, match=r"completion number 1, of 600 words against 600.*EditSimilarity"):
        Ter()(["word", long], [["word"], [long]])
    with pytest.raises(ValueError, match="raise max_words"):
        corpus_scores([long], [[long]])


@pytest.mark.parametrize("pairs", PAIRS)
def test_meteor_without_synonyms_is_nltks_with_an_empty_wordnet(pairs: str) -> None:
    texts, references = PAIRS[pairs]()
    empty = SimpleNamespace(synsets=lambda word: [])
    expected = [
        meteor_score([wordpunct_tokenize(target) for target in own], wordpunct_tokenize(text), wordnet=empty)
        for text, own in zip(texts, references, strict=True)
    ]
    assert Meteor(synonyms=False)(completions=texts, references=references) == pytest.approx(expected, abs=1e-12)


class OneSynonym:
    """A WordNet in which "hound" is a dog."""

    def ensure_loaded(self) -> None:
        pass

    def synsets(self, word: str) -> list[Any]:
        lemmas = [SimpleNamespace(name=lambda: "dog"), SimpleNamespace(name=lambda: "hound")]
        return [SimpleNamespace(lemmas=lambda: lemmas)] if word == "hound" else []


def test_meteor_with_synonyms_reads_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.corpus, "wordnet", OneSynonym())
    pair = (["my hound runs"], [["my dog runs"]])
    expected = meteor_score([["my", "dog", "runs"]], ["my", "hound", "runs"], wordnet=OneSynonym())
    assert Meteor()(*pair) == [expected]
    assert Meteor(synonyms=False)(*pair)[0] < expected


def test_meteor_without_its_data_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise LookupError("Resource wordnet not found.")

    monkeypatch.setattr(nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=missing))
    with pytest.raises(LookupError, match=r"nltk.downloader wordnet.*Meteor\(synonyms=False\)"):
        resolve_reward("meteor")


@pytest.mark.parametrize("pairs", PAIRS)
def test_corpus_scores_are_the_libraries_own(pairs: str) -> None:
    texts, references = PAIRS[pairs]()
    most = max(map(len, references))
    streams: Any = [[own[at] if at < len(own) else None for own in references] for at in range(most)]
    scores = corpus_scores(texts, references)
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())):
        assert scores[name] == pytest.approx(metric.corpus_score(texts, streams).score, abs=1e-9)
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        values = Rouge(name)(texts, references)
        assert scores[name] == pytest.approx(100 * sum(values) / len(values), abs=1e-9)


def test_a_corpus_score_is_not_the_mean_of_the_texts() -> None:
    per_text = Bleu()(TEXTS, REFERENCES)
    assert abs(corpus_scores(TEXTS, REFERENCES)["bleu"] - 100 * sum(per_text) / len(per_text)) > 1
    with pytest.raises(ValueError, match="at least one text"):
        corpus_scores([], [])


@pytest.mark.parametrize("reward", [Bleu(), Chrf(), Ter(), Meteor(synonyms=False)], ids=lambda reward: reward.name)
def test_what_cannot_be_compared_is_refused(reward: Any) -> None:
    with pytest.raises(ValueError, match=f"{reward.name} needs a reference"):
        reward(["a"], [[]])
    with pytest.raises(TypeError, match="got the string 'abc'"):
        reward(["abc"], ["abc"])
    with pytest.raises(TypeError, match=r"completions\[1\] is int 3"):
        reward(["a", 3], [["a"], ["b"]])
    assert pickle.loads(pickle.dumps(reward))(TEXTS, REFERENCES) == reward(TEXTS, REFERENCES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bleu("expo"), "unknown BLEU smoothing 'expo'; did you mean 'exp'"),
        (lambda: Bleu(tokenize="char13"), "unknown BLEU tokenizer 'char13'; did you mean 'char'"),
        (lambda: Bleu(max_order=0), "max_order >= 1, got 0"),
        (lambda: Chrf(char_order=0), "char_order >= 1"),
    ],
)
def test_unknown_settings_name_the_mend(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
