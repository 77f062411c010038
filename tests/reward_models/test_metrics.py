"""ROUGE: the same numbers as the library it wraps, and clear words where there is nothing to compare."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
from rouge_score import rouge_scorer

from reward_models import Rouge, RougeMean
from reward_models.words import words
from tests.reward_models.shared_data import records
from textgen_env import RewardError, resolve_reward
from textgen_env.types import Completion, Prompt

PAIRS = [
    ("the cat sat on the mat", "the cat was on the mat"),
    ("Running dogs!\nA quiet end.", "A dog runs.\nThe end was quiet."),
    ("mat the on sat cat the", "the cat sat on the mat"),
    ("exactly this", "exactly this"),
    ("nothing", "in common"),
    ("", "an empty answer"),
    ("an empty reference", ""),
    ("¿?!", "..."),
]
LIBRARY_NAMES = {"1": "rouge1", "2": "rouge2", "L": "rougeL", "Lsum": "rougeLsum"}
MEASURES = {"f1": "fmeasure", "precision": "precision", "recall": "recall"}


def library(variant: str, measure: str, stem: bool, pairs: list[tuple[str, str]]) -> list[float]:
    name = LIBRARY_NAMES[variant]
    scorer = rouge_scorer.RougeScorer([name], use_stemmer=stem)
    return [getattr(scorer.score(target, text)[name], MEASURES[measure]) for text, target in pairs]


def ours(rouge: Rouge, pairs: list[tuple[str, str]]) -> list[float]:
    return rouge(completions=[text for text, _ in pairs], references=[[target] for _, target in pairs])


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("variant", LIBRARY_NAMES)
def test_parity_with_the_library(variant: str, measure: str, stem: bool) -> None:
    scores = ours(Rouge(variant, measure=measure, use_stemmer=stem), PAIRS)
    assert scores == library(variant, measure, stem, PAIRS)
    assert all(type(score) is float and 0.0 <= score <= 1.0 for score in scores)


@pytest.mark.parametrize("variant", LIBRARY_NAMES)
def test_parity_on_news_summaries(variant: str) -> None:
    news = records("cnndm_sample/cnndm.jsonl", 40)
    # The lead is a strong summary; its sentences go on lines of their own, as Lsum wants them.
    pairs = [(record["document"][:300].replace(". ", ".\n"), record["summary"]) for record in news]
    scores = ours(Rouge(variant), pairs)
    assert scores == library(variant, "f1", False, pairs)
    assert len(set(scores)) > 20


def test_what_separates_the_variants() -> None:
    reordered = [("mat the on sat cat the", "the cat sat on the mat")]
    assert ours(Rouge("1"), reordered) == [1.0]
    assert ours(Rouge("L"), reordered)[0] < 1.0
    two_lines = [("b b\na a", "a a\nb b")]
    assert ours(Rouge("Lsum"), two_lines) == [1.0]
    assert ours(Rouge("L"), two_lines) == [0.5]
    inflected = [("dogs running", "dog runs")]
    assert ours(Rouge("1"), inflected)[0] < ours(Rouge("1", use_stemmer=True), inflected)[0]


def test_the_best_of_several_references_is_the_best_in_the_chosen_measure() -> None:
    text, short, long = "the dog", "the", "the dog and the cat"
    references = [[short, long]]
    assert Rouge("1", "precision")([text], references) == [1.0]  # of the long one
    assert Rouge("1", "recall")([text], references) == [1.0]  # of the short one
    f1 = [ours(Rouge("1"), [(text, target)])[0] for target in (short, long)]
    assert f1[0] > f1[1]
    assert Rouge("1")([text], references) == [f1[0]]
    assert Rouge("1", aggregate="mean")([text], references) == [sum(f1) / 2]
    # The library picks the reference by F1 whatever is asked, which would be another precision.
    by_f1 = rouge_scorer.RougeScorer(["rouge1"]).score_multi(references[0], text)["rouge1"]
    assert by_f1.precision == 0.5


@pytest.mark.parametrize("spelling", ["L", "l", "rougeL", "rouge_l", "ROUGE-L"])
def test_variants_may_be_spelt_as_people_do(spelling: str) -> None:
    assert Rouge(spelling).name == "rouge_l"


def test_names_say_what_is_measured() -> None:
    assert Rouge(1).name == "rouge_1"
    assert Rouge("rouge2", measure="recall").name == "rouge_2_recall"
    assert Rouge("Lsum").name == "rouge_lsum"
    assert (Rouge().kind, Rouge().bounds) == ("terminal", (0.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "Lsumm"}, "unknown ROUGE variant 'Lsumm'; did you mean 'lsum'"),
        ({"variant": 3}, "unknown ROUGE variant 3; Known: 1, 2, l, lsum"),
        ({"measure": "recal"}, "unknown ROUGE measure 'recal'; did you mean 'recall'"),
        ({"aggregate": "maximum"}, "unknown ROUGE aggregate 'maximum'; did you mean 'max'|Known: max, mean"),
    ],
)
def test_unknown_settings_name_the_mend(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rouge(**settings)


def test_a_prompt_without_references_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="rouge_l needs a reference to compare with, and completion number 1 has none"):
        Rouge()(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="rouge_l needs references"):
        Rouge()(["a", "b"])
    batch = [
        Completion(Prompt("Say", ("a",)), "a", (1,), "eos"),
        Completion(Prompt("Tell me"), "b", (1,), "eos"),
    ]
    with pytest.raises(
        RewardError, match=r"'rouge_l' raised ValueError .*completion 1 of 2: 'b' \(prompt: 'Tell me'\)"
    ):
        resolve_reward("rouge_l").score(batch)


def test_references_given_as_one_string_are_not_read_letter_by_letter() -> None:
    with pytest.raises(TypeError, match="a list of references a prompt, got the string 'abc'"):
        Rouge()(["abc"], ["abc"])


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 completions, 1 references"):
        Rouge()(["a", "b"], [["a"]])


def test_the_common_subsequence_is_the_librarys_on_random_texts() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randrange(0, 60))) for _ in range(200)]
    pairs = list(zip(texts, reversed(texts), strict=True))
    scores = ours(Rouge("L"), pairs)
    assert scores == library("L", "f1", False, pairs)
    assert len(set(scores)) > 50


def test_a_text_is_split_once_a_call() -> None:
    seen = []

    def tokenize(text: str) -> list[str]:
        seen.append(text)
        return text.split()

    for variant in ("1", "L"):
        seen.clear()
        Rouge(variant, tokenize=tokenize)(["a b", "b c", "a b"], [["x", "y"]] * 3)
        assert sorted(seen) == ["a b", "b c", "x", "y"]


def test_other_scripts_need_a_tokenizer_of_theirs() -> None:
    pair = [("我喜欢猫", "我喜欢狗")]
    assert ours(Rouge("L"), pair) == [0.0]  # rouge-score knows a-z and 0-9
    assert ours(Rouge("L", tokenize=words), pair) == [0.75]
    with pytest.raises(ValueError, match="let your tokenize do it"):
        Rouge(tokenize=words, use_stemmer=True)


def test_long_texts_are_scored_or_refused() -> None:
    long = "word another " * 8_000
    assert ours(Rouge("L"), [(long, long)]) == [1.0]
    with pytest.raises(ValueError, match=r"compare 16000 words with 16000.*or use Rouge\('L'\)"):
        ours(Rouge("Lsum"), [(long, long)])


@pytest.mark.parametrize(("language", "agreement"), [("kk", 0.65), ("gu", 0.59), ("lt", 0.68)])
def test_agreement_with_human_choice(language: str, agreement: float) -> None:
    """Translators' preferences of WMT 2019, a tie being half right; stemmed."""
    pairs = records(f"wmt19_preference/{language}-en.jsonl", 1_500)
    references = [[pair["reference"]] for pair in pairs]
    rouge = Rouge("L", use_stemmer=True)
    chosen, rejected = (rouge([pair[which] for pair in pairs], references) for which in ("chosen", "rejected"))
    right = [(good > bad) + 0.5 * (good == bad) for good, bad in zip(chosen, rejected, strict=True)]
    assert sum(right) / len(right) == pytest.approx(agreement, abs=0.01)


def test_a_mean_of_variants_is_the_mean_of_their_scores() -> None:
    batch = [Completion(Prompt("Say", (target,)), text, (1,), "eos") for text, target in PAIRS]
    scores = resolve_reward("rouge_2_l").score(batch)
    parts = {name: ours(Rouge(name), PAIRS) for name in ("rouge_2", "rouge_l")}
    assert {name: told["raw"].tolist() for name, told in scores.components.items()} == parts
    expected = [(two + longest) / 2 for two, longest in zip(*parts.values(), strict=True)]
    assert scores.totals == pytest.approx(expected)
    assert scores.totals != pytest.approx(parts["rouge_l"])
    mean = RougeMean()
    assert (repr(mean), mean.bounds) == ("0.333333 * rouge_1 + 0.333333 * rouge_2 + 0.333333 * rouge_l", (0.0, 1.0))
    assert mean.score(batch[:1]).totals == pytest.approx(sum(ours(Rouge(v), PAIRS[:1])[0] for v in "12L") / 3)
    with pytest.raises(ValueError, match="needs at least one variant of 1, 2, l, lsum"):
        RougeMean([])


@pytest.mark.parametrize("measure", ["precision", "recall"])
def test_one_sided_measures_by_name(measure: str) -> None:
    reward = resolve_reward(f"rouge_1_{measure}")
    batch = [Completion(Prompt("Say", ("a b",)), "a b c d", (1,), "eos")]
    assert reward.name == f"rouge_1_{measure}"
    assert reward.score(batch).totals.tolist() == [0.5 if measure == "precision" else 1.0]


def test_pickles_and_deepcopies() -> None:
    rouge = Rouge("L", measure="recall", use_stemmer=True)
    for twin in (pickle.loads(pickle.dumps(rouge)), copy.deepcopy(rouge)):
        assert twin.name == rouge.name
        assert ours(twin, PAIRS) == ours(rouge, PAIRS)
