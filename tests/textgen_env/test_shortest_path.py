import pickle
import random
from dataclasses import replace
from itertools import pairwise, permutations, product

import gymnasium as gym
import numpy as np
import pytest

from tests.textgen_env.test_reverse import returns
from textgen_env import RewardError, TextMDP, train_tokenizer
from textgen_env.tasks import shortest_path
from textgen_env.tasks.dataset import split_of
from textgen_env.tasks.shortest_path import RUNG, Graph, WalkReward, random_graph, random_return

PAD, EOS, A, B, C, D = range(6)
SMALL = {"nodes": 4, "degree": 2, "limit": 4}


def make(**kwargs):
    """The whole task in one split."""
    task = shortest_path(**kwargs)
    return TextMDP(replace(task, splits={"train": [prompt for split in task.splits.values() for prompt in split]}))


def episodes(mdp, index, prefix=(), probability=1.0):
    """Every episode inside the mask, with its probability under uniformly random allowed tokens."""
    if prefix and (prefix[-1] == EOS or len(prefix) == mdp.max_new_tokens):
        yield prefix, probability
        return
    allowed = np.flatnonzero(mdp.action_mask(index, prefix)).tolist()
    for token in allowed:
        yield from episodes(mdp, index, (*prefix, token), probability / len(allowed))


def holds(graph, walk):
    return all(after in graph.successors[node] for node, after in pairwise(walk))


# The graph


def brute_force_distance(graph, start, goal):
    """The fewest edges, by trying every walk of one length after another."""
    for length in range(1, 9):
        for between in product(range(len(graph.successors)), repeat=length - 1):
            if holds(graph, (start, *between, goal)):
                return length
    raise AssertionError("not reached")


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_brute_force(seed):
    graph = random_graph(nodes=5, degree=2, seed=seed)
    for start, goal in permutations(range(5), 2):
        assert graph.distances[start][goal] == brute_force_distance(graph, start, goal)
        path = graph.shortest_path(start, goal)
        assert holds(graph, (start, *path))
        assert (len(path), path[-1]) == (graph.distances[start][goal], goal)


def test_every_node_has_its_edges_and_reaches_each():
    for nodes, degree, seed in ((24, 3, 0), (24, 3, 1), (52, 2, 0), (2, 1, 0), (6, 5, 0)):
        graph = random_graph(nodes, degree, seed)
        assert graph.distances[0][0] == 0
        for node, successors in enumerate(graph.successors):
            assert len(set(successors)) == degree
            assert node not in successors
    assert random_graph(seed=0) != random_graph(seed=1)


def test_random_walks_are_uniform_among_those_that_arrive_in_time():
    graph = Graph(((1, 2), (0, 2), (0, 1)))
    walks = [tuple(graph.random_walk(0, 2, 3, 0.0, random.Random(seed))) for seed in range(4000)]
    # 1/2, 1/4 and 1/8 of all walks; the eighth that is still under way is drawn anew
    expected = {(2,): 4 / 7, (1, 2): 2 / 7, (1, 0, 2): 1 / 7}
    assert set(walks) == set(expected)
    for walk, share in expected.items():
        assert walks.count(walk) / len(walks) == pytest.approx(share, abs=4.5 * (share / len(walks)) ** 0.5)


# The task


def test_prompts_are_the_pairs_of_nodes():
    mdp = make()
    assert (len(mdp.prompts), mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (552, 12, 28, 4)
    names = [prompt.text.removesuffix(" =").split(" > ") for prompt in mdp.prompts]
    assert len(set(map(tuple, names))) == 552
    for (start, goal), prompt in zip(names, mdp.prompts, strict=True):
        assert start != goal
        assert (ord(start) - ord("a"), ord(goal) - ord("a")) == (prompt.metadata["start"], prompt.metadata["goal"])


def test_splits_are_by_content():
    task = shortest_path()
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [424, 54, 74]
    for split, prompts in task.splits.items():
        assert {split_of(prompt.text) for prompt in prompts} == {split}


def test_references_are_walks_to_the_goal_and_not_the_best():
    mdp = make(walks=4)
    scores = []
    for index, prompt in enumerate(mdp.prompts):
        assert 1 <= len(prompt.references) <= 4
        written = [mdp.written(index, text) for text in prompt.references]
        scores.extend(mdp.returns(written))
        for completion in written:
            nodes = [token - A for token in completion.token_ids[:-1]]
            assert holds(random_graph(), (prompt.metadata["start"], *nodes))
            assert nodes.index(prompt.metadata["goal"]) == len(nodes) - 1  # it ends where it first meets the goal
    assert min(scores) > 0
    assert np.mean(scores) < 0.7


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_oracle_reaches_the_optimum_on_every_prompt(split):
    mdp = TextMDP(shortest_path(), split=split)
    assert mdp.returns([mdp.oracle_completion(index) for index in range(len(mdp.prompts))]).min() == 1
    assert mdp.optimal_return() == 1


@pytest.mark.parametrize("seed", range(3))
def test_optimum_and_random_return_by_enumeration_inside_the_mask(seed):
    mdp = make(**SMALL, seed=seed)
    expected = []
    for index in range(len(mdp.prompts)):
        ids, probabilities = zip(*episodes(mdp, index), strict=True)
        values = returns(mdp, index, ids)
        assert sum(probabilities) == pytest.approx(1)
        assert (values.max(), values.min()) == (1, 0)
        assert mdp.oracle_completion(index).token_ids in {ids[row] for row in np.flatnonzero(values == 1)}
        expected.append(values @ probabilities)
    assert np.mean(expected) == pytest.approx(random_return(**SMALL, seed=seed), abs=1e-12)


def test_optimum_and_random_return_by_enumeration_of_all_tokens():
    mdp = make(nodes=3, degree=1, limit=3, mask=False)
    vocab, expected = mdp.tokenizer.vocab_size, []
    assert vocab == 7
    everything = [
        ids[: ids.index(EOS) + 1] if EOS in ids else ids for ids in product(range(vocab), repeat=mdp.max_new_tokens)
    ]
    distinct = list(dict.fromkeys(everything))
    for index in range(len(mdp.prompts)):
        values = returns(mdp, index, distinct)
        assert values.max() == 1
        expected.append(values @ [float(vocab) ** -len(ids) for ids in distinct])
    assert np.mean(expected) == pytest.approx(random_return(3, 1, 3, mask=False), abs=1e-12)
    assert np.mean(expected) != pytest.approx(random_return(3, 1, 3, mask=True), abs=0.1)


def test_what_walks_earn():
    mdp = make(nodes=4, degree=1, limit=6)  # a ring
    graph = random_graph(4, 1, 0)
    index = next(i for i, p in enumerate(mdp.prompts) if graph.distances[p.metadata["start"]][p.metadata["goal"]] == 1)
    goal = mdp.prompts[index].metadata["goal"]
    other = graph.successors[goal][0]
    once, ring = A + goal, [A + node for node in (other, *graph.shortest_path(other, goal))]
    for ids, expected in (
        ((once, EOS), 1.0),
        ((once, *ring, EOS), 0.2),  # once more around: (6 - 5) / (6 - 1)
        ((once, A + other, EOS), 0.0),  # it went on
        ((once, once, EOS), 0.0),  # no edge leads back to itself
        ((PAD, once, EOS), 0.0),
        ((EOS,), 0.0),
        ((once, *ring, A + other), 0.0),
    ):
        assert returns(mdp, index, [ids])[0] == pytest.approx(expected)
    raised = TextMDP(mdp.task, max_new_tokens=12)
    assert returns(raised, index, [(once, *ring, *ring, EOS)])[0] == 0.0  # 9 edges, and not less than nothing
    lowered = TextMDP(mdp.task, max_new_tokens=1)
    assert returns(lowered, index, [(once,)])[0] == 1.0  # the cap ends it where an EOS would have stood


# The mask


def test_the_mask_is_the_graph():
    env = gym.make("textgen_env/ShortestPath-v0").unwrapped
    env.spec.to_json()
    graph, rng = random_graph(), np.random.default_rng(0)
    arrived = 0
    for seed in range(30):
        _, info = env.reset(seed=seed)
        prompt = env.mdp.prompts[info["prompt_index"]]
        at, ended = prompt.metadata["start"], False
        while not ended:
            allowed = np.flatnonzero(info["action_mask"]).tolist()
            at_goal = at == prompt.metadata["goal"]
            assert allowed == ([EOS] if at_goal else sorted(A + node for node in graph.successors[at]))
            action = EOS if at_goal else rng.choice(allowed)
            *_, ended, _, info = env.step(action)
            at = int(action) - A
        arrived += action == EOS
        assert (info["reward"]["walk"]["raw"] > 0) == (action == EOS)
    assert arrived > 3


def test_what_is_no_node_may_only_end():
    mdp = make()
    arrow = mdp.tokenizer.vocab_size - 2
    for token in (PAD, arrow, arrow + 1):
        assert np.flatnonzero(mdp.action_mask(0, (token,))).tolist() == [EOS]


def test_no_mask():
    assert shortest_path(mask=False).allowed_tokens is None


# The hack


def test_a_jump_to_the_goal_fools_the_reward_that_trusts_the_edges():
    mdp = TextMDP(shortest_path(), split="test")
    jumps = [mdp.written(index, RUNG.hack.answer(prompt)) for index, prompt in enumerate(mdp.prompts)]
    trusting = TextMDP(mdp.task, RUNG.hack.naive, split="test")
    assert trusting.returns(jumps).min() >= 1
    graph = random_graph()
    there = [prompt.metadata["goal"] in graph.successors[prompt.metadata["start"]] for prompt in mdp.prompts]
    assert mdp.returns(jumps).tolist() == there
    best = [mdp.oracle_completion(index) for index in range(len(mdp.prompts))]
    assert trusting.returns(best).mean() < trusting.returns(jumps).mean()  # the cheat beats the honest answer


# Errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"nodes": 1}, "nodes must lie between 2 and 52, got 1"),
        ({"nodes": 53}, "nodes must lie between 2 and 52, got 53"),
        ({"degree": 0}, "degree must lie between 1 and 23, the number of other nodes, got 0"),
        ({"nodes": 4, "degree": 4}, "degree must lie between 1 and 3, the number of other nodes, got 4"),
        ({"limit": 6}, "limit must be above 6, the longest of the shortest paths, got 6"),
        ({"habit": 1.0}, r"habit must lie in \[0, 1\), or some goals are never reached; got 1.0"),
        ({"walks": 0}, "walks must be at least 1, got 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        shortest_path(**kwargs)


def test_another_tokenizer_is_an_error():
    task = shortest_path(mask=False)
    mdp = TextMDP(task, tokenizer=train_tokenizer(task.texts(), 300))
    with pytest.raises(RewardError, match=r"outside the game's own vocabulary of 28: .* play it without tokenizer="):
        mdp.score([mdp.complete(0, (200,), "length")])


def test_tasks_travel():
    task = shortest_path()
    again = pickle.loads(pickle.dumps(task))
    assert (again.splits, again.reward) == (task.splits, task.reward)
    assert TextMDP(again).optimal_return() == 1
    assert TextMDP(again).action_mask(0, ()).sum() == 3
    assert WalkReward(24, 3, 12, 0).bounds == (0.0, 1.0)
