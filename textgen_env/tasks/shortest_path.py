"""Built-in task: walk from a start to a goal through a directed graph, over as few edges as can be, then stop.

    c > q =   →   f a q <eos>          (edges c→f, f→a, a→q)

The graph is random, the same in every prompt (it is drawn with the task's seed), and shown nowhere: an agent learns
its edges by walking, or from logged walks. A walk over ``length`` edges that reaches the goal earns

    ``(limit − length) / (limit − shortest)``,

1 for a shortest one, 0 after ``limit`` edges or more; a walk that uses an edge which is not there, or ends elsewhere,
earns 0. With ``mask`` the successors of the last node are what may come next, and the EOS at the goal alone.

The references are not optimal: they are random walks that reached the goal. So the task separates *stitching* such
data (Q-learning joins the best pieces of different walks) from *cloning* it (which walks as they did), after the random
walks of trlX (Havrilla et al. 2023), whose 21 nodes and one goal leave little room between the two.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, permutations
from typing import ClassVar

from textgen_env.tasks.dataset import TextTask
from textgen_env.tasks.games import EOS_ID, check_ids
from textgen_env.tasks.rung import Hack, Rung
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Prompt

TO, EQUALS = ">", "="
_NODES = string.ascii_letters
_FIRST = EOS_ID + 1


def shortest_path(
    nodes: int = 24,
    degree: int = 3,
    limit: int = 12,
    walks: int = 8,
    habit: float = 0.5,
    seed: int = 0,
    mask: bool = True,
) -> TextTask:
    """A prompt for each ordered pair of nodes; the answer is a shortest path, the start left out, and an EOS.

    Args:
        nodes: how many there are, at most 52. There are ``nodes (nodes − 1)`` prompts.
        degree: edges that leave each node.
        limit: edges at which a walk is worth nothing any more, and the cap on an answer's tokens. Above the longest
            of the shortest paths.
        walks: random walks drawn for each prompt as its references; repeats are one.
        habit: the probability with which the walker stays on the ring without a choice; else it takes any edge.
        seed: draws the graph and the walks.
        mask: allow the successors of the last node only, and at the goal the EOS only.

    The metadata of a prompt are the numbers of its two nodes, ``start`` and ``goal``.

    >>> task = shortest_path(nodes=5, degree=2, limit=6)
    >>> task.prompts()[0].text, task.oracle(task.prompts()[0])
    ('a > b =', 'd b')

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if walks < 1:
        raise ValueError(f"walks must be at least 1, got {walks}")
    if not 0 <= habit < 1:
        raise ValueError(f"habit must lie in [0, 1), or some goals are never reached; got {habit}")
    graph = random_graph(nodes, degree, seed)
    longest = max(map(max, graph.distances))
    if limit <= longest:
        raise ValueError(f"limit must be above {longest}, the longest of the shortest paths, got {limit}")
    rng = random.Random(f"walks {seed}")

    def prompt(start: int, goal: int) -> Prompt:
        logged = [text_of(graph.random_walk(start, goal, limit - 1, habit, rng)) for _ in range(walks)]
        text = f"{_NODES[start]} {TO} {_NODES[goal]} {EQUALS}"
        return Prompt(text, tuple(dict.fromkeys(logged)), {"start": start, "goal": goal})

    reward = WalkReward(nodes, degree, limit, seed)
    return TextTask(
        "shortest_path",
        TextTask.from_pairs(prompt(*pair) for pair in permutations(range(nodes), 2)).splits,
        vocabulary=(*_NODES[:nodes], TO, EQUALS),
        max_new_tokens=limit,
        reward=reward,
        oracle=reward.oracle,
        allowed_tokens=reward.successors if mask else None,
    )


def text_of(walk: Sequence[int]) -> str:
    """The words of some nodes."""
    return " ".join(_NODES[node] for node in walk)


@dataclass(frozen=True)
class Graph:
    """A directed graph in which each node can be reached from each. Nodes are numbers from 0."""

    successors: tuple[tuple[int, ...], ...]
    """The nodes that the edges of each node lead to, first the next on a ring through all nodes."""

    @cached_property
    def distances(self) -> tuple[tuple[int, ...], ...]:
        """``distances[start][goal]``: the edges of a shortest path, by breadth-first search."""
        return tuple(self._distances_from(start) for start in range(len(self.successors)))

    def _distances_from(self, start: int) -> tuple[int, ...]:
        found, queue = {start: 0}, [start]
        for node in queue:  # grows while it is read
            for after in self.successors[node]:
                if after not in found:
                    found[after] = found[node] + 1
                    queue.append(after)
        return tuple(found[goal] for goal in range(len(self.successors)))

    def shortest_path(self, start: int, goal: int) -> list[int]:
        """The nodes after ``start`` on a shortest path; of several, the first in the order of the nodes."""
        path = [start]
        while path[-1] != goal:
            path.append(min(self.successors[path[-1]], key=lambda node: self.distances[node][goal]))
        return path[1:]

    def random_walk(self, start: int, goal: int, longest: int, habit: float, rng: random.Random) -> list[int]:
        """The nodes after ``start`` on a random walk that ends where it first meets the goal.

        With the probability ``habit`` it takes the first edge of a node, the ring's, and else any. Drawn anew until
        it takes at most ``longest`` edges, which must be possible.
        """
        walk = [start]
        while walk[-1] != goal:
            edges = self.successors[walk[-1]]
            after = edges[0] if rng.random() < habit else rng.choice(edges)
            walk = [*walk, after] if len(walk) <= longest else [start]
        return walk[1:]


@lru_cache(maxsize=8)
def random_graph(nodes: int = 24, degree: int = 3, seed: int = 0) -> Graph:
    """The graph of `shortest_path` with the same arguments.

    One edge of each node leads to the next on a ring through all of them in random order, so that each can be reached;
    the others are short cuts, to different nodes at random.

    Raises:
        ValueError: an argument is out of its range (the message says which).
    """
    if not 2 <= nodes <= len(_NODES):
        raise ValueError(f"nodes must lie between 2 and {len(_NODES)}, got {nodes}")
    if not 1 <= degree < nodes:
        raise ValueError(f"degree must lie between 1 and {nodes - 1}, the number of other nodes, got {degree}")
    rng = random.Random(f"graph {seed}")
    ring = rng.sample(range(nodes), nodes)
    following = dict(pairwise([*ring, ring[0]]))
    successors = []
    for node in range(nodes):
        others = [other for other in range(nodes) if other not in (node, following[node])]
        successors.append((following[node], *sorted(rng.sample(others, degree - 1))))
    return Graph(tuple(successors))


@dataclass(frozen=True)
class WalkReward:
    """``(limit − length) / (limit − shortest)`` for a walk to the goal, not below 0; 0 for anything else.

    ``trusting`` is the naive variant, which does not look whether the edges are there.
    """

    name: ClassVar[str] = "walk"
    kind: ClassVar[str] = "terminal"

    nodes: int
    degree: int
    limit: int
    seed: int
    trusting: bool = False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of the reward; a jump where there is no edge may be shorter than the shortest path."""
        return None if self.trusting else (0.0, 1.0)

    @property
    def _graph(self) -> Graph:
        return random_graph(self.nodes, self.degree, self.seed)

    def __call__(self, completion_ids: list[list[int]], start: list[int], goal: list[int]) -> list[float]:
        """One number a completion."""
        return [self._one(*each) for each in zip(completion_ids, start, goal, strict=True)]

    def _one(self, ids: list[int], start: int, goal: int) -> float:
        check_ids(ids, self.nodes + len((TO, EQUALS)) + _FIRST)
        written = ids[:-1] if ids[-1] == EOS_ID else ids
        walk = [start, *(token - _FIRST for token in written)]
        if walk[-1] != goal or not (self.trusting or self._holds(walk)):
            return 0.0
        return max(0.0, (self.limit - len(written)) / (self.limit - self._graph.distances[start][goal]))

    def _holds(self, walk: Sequence[int]) -> bool:
        successors = self._graph.successors
        return all(0 <= node < self.nodes and after in successors[node] for node, after in pairwise(walk))

    def oracle(self, prompt: Prompt) -> str:
        """A shortest path."""
        return text_of(self._graph.shortest_path(prompt.metadata["start"], prompt.metadata["goal"]))

    def successors(self, prompt: Prompt, actions: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
        """Where the edges of the last node lead. At the goal, and after what is no node, EOS."""
        last = actions[-1] - _FIRST if actions else prompt.metadata["start"]
        if last == prompt.metadata["goal"] or not 0 <= last < self.nodes:
            return [EOS_ID]
        return [node + _FIRST for node in self._graph.successors[last]]


def random_return(nodes: int = 24, degree: int = 3, limit: int = 12, seed: int = 0, mask: bool = True) -> float:
    """What uniformly random tokens expect, or with ``mask`` uniformly random allowed ones: a mean over all pairs.

    Exact: from ``P_0 = [start]``, the probability of standing at each node after ``length`` edges of a walk that holds
    is ``P_{length+1}(v) = Σ_u P_length(u) p(v | u)``, and the reward is paid with the EOS at the goal.
    """
    graph = random_graph(nodes, degree, seed)
    pairs = list(permutations(range(nodes), 2))
    return sum(_expected(graph, start, goal, limit, mask) for start, goal in pairs) / len(pairs)


def _expected(graph: Graph, start: int, goal: int, limit: int, mask: bool) -> float:
    nodes, degree, expected = len(graph.successors), len(graph.successors[0]), 0.0
    vocab = nodes + len((TO, EQUALS)) + _FIRST
    at = {start: 1.0}
    for length in range(limit):
        paid = (limit - length) / (limit - graph.distances[start][goal])
        arrived = at.get(goal, 0.0)
        expected += paid * (arrived if mask else arrived / vocab)
        after: dict[int, float] = {}
        for node, probability in at.items():
            if node == goal and mask:
                continue
            for successor in graph.successors[node]:
                after[successor] = after.get(successor, 0.0) + probability / (degree if mask else vocab)
        at = after
    return expected


def _jump(prompt: Prompt) -> str:
    return text_of([prompt.metadata["goal"]])


RUNG = Rung(
    random=random_return(),
    supervised=0.444,
    optimum=1.0,
    hack=Hack(
        "Jumps straight to the goal, whether there is an edge or not.",
        answer=_jump,
        naive=WalkReward(nodes=24, degree=3, limit=12, seed=0, trusting=True),
        naive_score=1.1934,
        robust_score=0.1216,
    ),
)
