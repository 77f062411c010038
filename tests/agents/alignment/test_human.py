import numpy as np
import pytest

from agents.alignment.human import judged_pairs, pair_consistency, rated_texts, rating_consistency

NAN = float("nan")
PROMPTS = [f"p{number}" for number in range(6)]


def spearman(x, y):
    """Pearson's correlation of mean ranks, each rank counted out."""
    ranks = [[(side < value).sum() + (side <= value).sum() for value in side] for side in (x, y)]
    return np.corrcoef(*ranks)[0, 1]


def naive_pairs(votes_IA, signs_I):
    """The definition, one left-out annotator after the other."""
    people, scorer = [], []
    for votes, sign in zip(votes_IA, signs_I, strict=True):
        for left_out, vote in enumerate(votes):
            if np.isnan(vote):
                continue
            others = sum(other for at, other in enumerate(votes) if at != left_out and not np.isnan(other))
            if others:
                for credits, said in ((people, vote), (scorer, sign)):
                    credits.append(0.5 if said == 0 else float(said * others > 0))
    return np.mean(people), np.mean(scorer)


def test_the_ceiling_of_a_matrix_by_hand():
    """Pair 1: three of three agree. Pair 2: the odd one out has two against him, the others face a balance."""
    found = pair_consistency([[1, 1, 1], [1, 1, -1]], [1, 1], ["p", "q"])
    assert found.ceiling.value == pytest.approx(3 / 4)  # credits 1, 1, 1 and 0; two votes face no majority
    assert found.alike.value == 1
    assert found.gap.value == pytest.approx(1 / 4)
    assert found.score.value == 1
    assert (found.items, found.annotators, found.judgements) == (2, 3, 4)


def test_the_ceiling_is_the_definition_with_ties_and_gaps():
    draw = np.random.default_rng(0)
    votes = draw.choice([1.0, -1.0, 0.0, NAN], size=(40, 5))
    votes[:, 0] = 1.0
    signs = draw.choice([1.0, -1.0, 0.0], size=40)
    found = pair_consistency(votes, signs, [f"p{number % 13}" for number in range(40)])
    people, scorer = naive_pairs(votes, signs)
    assert (found.ceiling.value, found.alike.value) == pytest.approx((people, scorer))
    assert found.gap.value == pytest.approx(scorer - people)
    low, high = found.gap.interval
    assert low < found.gap.value < high


def test_a_scorer_that_is_one_of_the_people_reaches_the_ceiling_and_a_blind_one_does_not():
    """Annotators report a common truth with probability .8: the ceiling and a further annotator agree in the limit."""
    draw = np.random.default_rng(1)
    truth = draw.choice([1.0, -1.0], size=3000)
    said = np.where(draw.random((3000, 6)) < 0.8, truth[:, None], -truth[:, None])
    prompts = [str(number) for number in range(3000)]
    found = pair_consistency(said[:, :5], said[:, 5], prompts, resamples=100)
    assert found.gap.interval[0] < 0 < found.gap.interval[1]
    # Four others have a majority with probability 1 − 6·.8²·.2² and it is right with .8⁴ + 4·.8³·.2.
    right, wrong = 0.8**4 + 4 * 0.8**3 * 0.2, 0.2**4 + 4 * 0.2**3 * 0.8
    expected = (0.8 * right + 0.2 * wrong) / (right + wrong)
    assert found.ceiling.value == pytest.approx(expected, abs=0.01)
    blind = pair_consistency(said[:, :5], draw.choice([1.0, -1.0], size=3000), prompts, resamples=100)
    assert blind.gap.interval[1] < -0.2


def test_one_annotator_gives_no_ceiling_and_no_majority_is_an_error():
    alone = pair_consistency([[1], [-1]], [1, 1], ["p", "q"])
    assert alone.ceiling is alone.alike is alone.gap is None
    assert alone.score.value == 0.5
    with pytest.raises(ValueError, match="balance on every pair"):
        pair_consistency([[1, -1]], [1], ["p"])
    with pytest.raises(ValueError, match="2 scores and 1 prompts"):
        pair_consistency([[1, -1]], [1, 1], ["p"])


def test_ratings_are_spearmans_with_the_others_mean():
    draw = np.random.default_rng(2)
    ratings = draw.integers(1, 6, size=(30, 3)) + draw.integers(0, 4, size=(30, 1)).astype(float)
    scores = ratings.mean(1) + draw.normal(size=30)
    found = rating_consistency(ratings, scores, [f"p{number % 10}" for number in range(30)], resamples=100)
    others = [(ratings.sum(1) - ratings[:, a]) / 2 for a in range(3)]
    people = np.mean([spearman(ratings[:, a], others[a]) for a in range(3)])
    scorer = np.mean([spearman(scores, others[a]) for a in range(3)])
    assert found.ceiling.value == pytest.approx(people)
    assert found.alike.value == pytest.approx(scorer)
    assert found.score.value == pytest.approx(spearman(scores, ratings.mean(1)))
    assert found.ceiling.interval[0] < people < found.ceiling.interval[1]


def test_leniency_does_not_lower_the_ceiling_and_few_shared_texts_do_not_count():
    ratings = np.arange(6.0)[:, None] + [[0.0, 10.0, 20.0]]
    assert rating_consistency(ratings, np.arange(6), PROMPTS, resamples=0).ceiling.value == 1
    two_shared = np.array([[1, 5], [2, 4], [3, NAN], [4, NAN], [5, NAN], [6, NAN]])  # no correlation of two
    assert rating_consistency(two_shared, np.arange(6), PROMPTS, resamples=0).ceiling is None
    assert rating_consistency(ratings[:, :1], np.arange(6), PROMPTS, resamples=0).ceiling is None
    with pytest.raises(ValueError, match="whose scores differ"):
        rating_consistency(ratings, np.ones(6), PROMPTS, resamples=0)


def test_records_become_tables():
    records = [
        {"prompt": "p", "chosen": "b", "rejected": "a", "annotator": "x", "sources": ["new", "old"]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": "y", "sources": ["old", "new"]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "tie": True, "annotator": "z"},
        {"prompt": "q", "ranking": ["c", "a", "b"], "annotator": "x"},
        {"prompt": "p", "completion": "a", "rating": 2, "annotator": "y"},
        {"prompt": "p", "completion": "a", "rating": 4},
    ]
    pairs, rated = judged_pairs(records), rated_texts(records)
    assert pairs.texts_I == (("a", "b"), ("a", "c"), ("b", "c"), ("a", "b"))
    np.testing.assert_array_equal(pairs.votes_IA[0], [-1, 1, 0])
    np.testing.assert_array_equal(pairs.votes_IA[1:, 0], [-1, -1, 1])
    assert np.isnan(pairs.votes_IA[1:, 1:]).all()
    assert pairs.sources_I == (("old", "new"), None, None, None)
    assert rated.texts_I == ("a",)
    assert np.sort(rated.ratings_IA[0]).tolist() == [2, 4]
    assert judged_pairs([]) is rated_texts(records[:1]) is None


def test_judgements_without_a_name_are_one_person_each():
    same = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert judged_pairs([same, same]).votes_IA.tolist() == [[1, 1]]
    named = {**same, "annotator": "x"}
    assert judged_pairs([named, {**named, "chosen": "b", "rejected": "a"}]).votes_IA.tolist() == [[-1]]  # the last
