import numpy as np
import pytest

from agents.alignment.duel import as_pairwise, counted, pairwise_duel, people_duel, pointwise_duel
from agents.alignment.human import judged_pairs
from reward_models.feedback.agreement import wilson

PROMPTS = ["p", "q", "r", "s"]


def longer(prompts, pairs):
    """The longer text; equal lengths are a tie."""
    return [None if len(a) == len(b) else int(len(b) > len(a)) for a, b in pairs]


def always_first(pairs):
    return [0] * len(pairs)


def test_wilson_solves_its_equation():
    """Its ends are the p at which the observed share lies 1.96 standard errors away: (s − p)² = z² p(1 − p)/n."""
    z = 1.959963984540054
    for hits, total in ((0, 5), (3, 10), (50, 50), (7, 8)):
        share = hits / total
        for end in wilson(share, total):
            assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / total, abs=1e-12)
    assert wilson(3 / 10, 10) == pytest.approx((0.107791, 0.603222), abs=1e-6)


def test_higher_scores_win_and_ties_count_half():
    duel = pointwise_duel([3, 1, 2, 2], [1, 3, 2, 0], PROMPTS)
    assert (duel.wins, duel.ties, duel.losses) == (2, 1, 1)
    assert duel.rate.value == 0.625
    assert duel.rate.interval == pytest.approx(wilson(0.625, 4))
    assert pointwise_duel([3, 1, 2, 2], [1, 3, 2, 0], PROMPTS, tolerance=5).ties == 4


def test_several_outcomes_of_a_prompt_are_drawn_together():
    outcomes = [1, 1, 1, 1, -1, -1, -1, -1]
    same, apart = counted(outcomes, list("ppppqqqq")), counted(outcomes, list("abcdefgh"))
    assert same.rate.value == apart.rate.value == 0.5
    assert same.rate.interval == (0, 1)  # two prompts: all or nothing
    assert apart.rate.interval == pytest.approx(wilson(0.5, 8))
    with pytest.raises(ValueError, match="got 1 for 2"):
        counted([1], ["p", "q"])
    assert np.isnan(counted([], []).rate.value)


def test_a_fair_judge_is_not_moved_by_the_order():
    duel = pairwise_duel(as_pairwise(longer), PROMPTS, ["aa", "a", "aa", "aaa"], ["a", "aa", "aa", "a"])
    assert (duel.wins, duel.ties, duel.losses) == (2, 1, 1)
    assert duel.order.inconsistent.hits == 0
    assert duel.order.first_preferred.share.value == 0.5


def test_position_bias_is_seen_and_earns_no_win():
    """Must fail twin of the one above: asked in one order only, this judge would prefer the model every time."""
    judge = as_pairwise(always_first)
    assert judge(PROMPTS, [("a", "b")] * 4).tolist() == [1] * 4
    duel = pairwise_duel(judge, PROMPTS, ["a"] * 4, ["b"] * 4)
    assert (duel.wins, duel.ties, duel.losses) == (0, 4, 0)
    assert duel.order.inconsistent.share.value == duel.order.first_preferred.share.value == 1


def test_no_answer_does_not_count():
    def silent(pairs):
        return [-1 if "?" in a + b else 0 if a > b else 1 for a, b in pairs]

    duel = pairwise_duel(as_pairwise(silent), PROMPTS, ["b", "b?", "a", "b"], ["a", "a", "b", "a"])
    assert (duel.wins, duel.ties, duel.losses, duel.undecided) == (2, 0, 1, 1)


def test_what_a_judge_of_pairs_is():
    class Judge:
        """As TRL's."""

        def judge(self, prompts, completions, shuffle_order=True):
            assert not shuffle_order
            return [int(len(b) > len(a)) for a, b in completions]

    assert as_pairwise(Judge())(["p"], [("a", "bb")]).tolist() == [-1]
    assert as_pairwise(lambda completions: [0.0]) is None
    with pytest.raises(ValueError, match="2 answers about 1"):
        as_pairwise(lambda pairs: [0, 0])(["p"], [("a", "b")])
    with pytest.raises(ValueError, match=r"answered 0\.7"):
        as_pairwise(lambda pairs: [0.7])(["p"], [("a", "b")])


def test_people_decide_by_sources():
    def vote(prompt, chosen, sources, annotator="x"):
        rejected = "a" if chosen == "b" else "b"
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "sources": sources, "annotator": annotator}

    records = [
        vote("p", "a", ["ppo", "sft"]),
        vote("p", "a", ["ppo", "sft"], "y"),
        vote("q", "b", ["sft", "ppo"]),
        vote("r", "b", ["ppo", "other"]),
    ]
    duel = people_duel(judged_pairs(records), "ppo", "sft")
    assert (duel.wins, duel.ties, duel.losses) == (2, 0, 1)
    assert people_duel(judged_pairs(records), "sft", "ppo").rate.value == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="did you mean 'ppo'"):
        people_duel(judged_pairs(records), "pqo", "sft")
