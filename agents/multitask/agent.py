"""Several tasks in one run: ``L = Σ_k λ_k L_k`` over one policy, every ``L_k`` the algorithm's own loss on task k.

Where should tasks meet? A vector environment whose rows are of different tasks, with a weight for each row in the
loss, looks simplest, and `TaskRows` is there for clients that step it. It is not what the agents learn from. Whatever
an algorithm computes over a rollout would be computed over all tasks at once: whitened advantages, baselines, the scale
of rewards, the steering of the KL; a task of large rewards would then silence the others whatever the weights. And rows
that end early would start more episodes, so that tasks of short answers got more of them. So each task is collected and
prepared on its own, with a reward, a length cap and a KL coefficient of its own, and tasks meet where their losses do:
at the gradients. Each optimiser step takes the same share of every task's episodes, computes the gradient of each mean
loss alone, and steps along their weighted sum. That costs a copy of the gradients for every task, and buys what a sum
of losses hides: whether tasks pull against each other, as the cosine of their gradients.

A task may also have the loss "likelihood", −log π of its references: with that, supervised learning and RL share a
step, as in PPO-ptx (Ouyang et al. 2022, equation 2).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from agents.advantages import explained_variance
from agents.algorithms import ALGORITHMS
from agents.base import TextAlgorithm
from agents.cloning import likelihood_gradients
from agents.multitask.env import TASK, TaskCollector, TaskRows, joined, padded, rows_by_task
from agents.policy_gradient import Batch, PolicyGradient
from agents.rollout_metrics import rollout_metrics
from agents.trajectories import Trajectories
from textgen_env import TextMDP

_OWN = ("kl_controller", "moving_average")
"""What an algorithm carries from rollout to rollout, and each task has for itself."""


@functools.cache
def multitask(kind: type[TextAlgorithm]) -> type[MultiTask]:
    """An algorithm for several tasks: ``multitask(PPO)(model, TaskRows([...]))``, with PPO's options.

    ``learn``, ``save``, ``load`` and ``generate`` are PPO's; its metrics stand behind each task's name
    (``Reverse/kl/per_sequence``), and without one as means by weight.

    Args:
        kind: a policy-gradient algorithm.

    Raises:
        ValueError: it is none.
    """
    if not issubclass(kind, PolicyGradient):
        fit = sorted(name for name, (known, _) in ALGORITHMS.items() if issubclass(known, PolicyGradient))
        raise ValueError(
            f"{kind.__name__} cannot learn several tasks, {', '.join(fit)} can; for supervised learning "
            "give their tasks the loss 'likelihood'"
        )
    return type(f"MultiTask{kind.__name__}", (MultiTask, kind), {"__doc__": f"{kind.__name__} on several tasks."})


class MultiTask(PolicyGradient):
    """The part of `multitask` that all algorithms share. Stands before an algorithm among the bases of a class."""

    distributes = False  # a minibatch of one rank may lack a task that another's has

    _own: dict[str, dict[str, Any]]
    """Task -> its part of `_OWN`."""

    @property
    def tasks(self) -> TaskRows:
        """The environment.

        Raises:
            TypeError: it is not one of several tasks.
        """
        rows = None if self.env is None else self.env.vector_env  # type: ignore[attr-defined]
        if not isinstance(rows, TaskRows):
            raise TypeError(f"{type(self).__name__} learns in TaskRows([Task(...), ...]), not in {type(rows).__name__}")
        return rows

    @property
    def _mdp(self) -> TextMDP | None:
        """The first task's: what all share is read from it."""
        return None if self.env is None else self.tasks.tasks[0].mdp

    def _setup_model(self) -> None:
        super()._setup_model()
        if not hasattr(self, "_own"):
            self._own = {}
        if self.env is not None:
            minibatches, prompts = getattr(self.config, "minibatches", 1), self._prompts_of_a_task()
            if prompts < minibatches:
                raise ValueError(
                    f"{minibatches} minibatches need as many prompts of every task, got {prompts}: "
                    "raise episodes_per_rollout"
                )

    def _prompts_of_a_task(self) -> int:
        return self.config.episodes_per_rollout // self.config.samples_per_prompt // len(self.tasks.active)

    def _make_collector(self) -> Any:
        return TaskCollector(self.tasks, self.policy, seed=self.seed)

    @contextlib.contextmanager
    def playing(self, name: str) -> Iterator[None]:
        """The agent as it is on one task: its collector, its KL coefficient, its name before the metrics."""
        shared = {key: self.__dict__[key] for key in (*_OWN, "collector", "_logger") if key in self.__dict__}
        if name not in self._own:
            fresh = {key: copy.deepcopy(getattr(self, key)) for key in _OWN if hasattr(self, key)}
            self._own[name] = fresh
        collector: Any = self.collector
        logger: Any = Prefixed(self.logger, name)
        self.__dict__.update(self._own[name])
        self.collector, self._logger = collector.parts[name], logger
        try:
            yield
        finally:
            self._own[name] = {key: self.__dict__[key] for key in self._own[name]}
            for key in self._own[name].keys() - shared.keys():
                del self.__dict__[key]
            self.__dict__.update(shared)

    # ---------------------------------------------------------------- one rollout

    def _check_first_rollout(self, trajectories: Trajectories) -> None:
        played = self._played(trajectories)
        if len(played):  # references have no sampler to compare with
            super()._check_first_rollout(trajectories.select(played))

    def _played(self, trajectories: Trajectories) -> Tensor:
        """The rows of tasks that learn from reward."""
        losses = {task.name: task.loss for task in self.tasks.tasks}
        rows = [row for row, info in enumerate(trajectories.infos) if losses[info[TASK]] == "reward"]
        return torch.tensor(rows, dtype=torch.long)

    def train(self, trajectories: Trajectories) -> None:
        """The algorithm's update, on all tasks."""
        played = self._played(trajectories)
        for name, value in rollout_metrics(trajectories.select(played)).items() if len(played) else ():
            self.logger.record(name, value)  # over what was recorded of all episodes, references among them
        for task, rows in rows_by_task(trajectories).items():
            for name, value in rollout_metrics(trajectories.select(rows)).items():
                self.logger.record(f"{task}/{name}", value)
        super().train(trajectories)

    def prepare(self, trajectories: Trajectories) -> Batch:
        """Every task prepared on its own."""
        losses = {task.name: task.loss for task in self.tasks.tasks}
        batches: dict[str, Batch] = {}
        for name, rows in rows_by_task(trajectories).items():
            if losses[name] == "reward":
                with self.playing(name):
                    batches[name] = super().prepare(trajectories.select(rows))
        for name, rows in rows_by_task(trajectories).items():
            if losses[name] == "likelihood":
                part = trajectories.select(rows)
                nothing_BT = torch.zeros_like(part.log_probs_BT)
                example = next(iter(batches.values()), Batch(part, nothing_BT, None, None))
                batches[name] = Batch(
                    part,
                    nothing_BT,
                    None if example.returns_BT is None else nothing_BT,
                    None if example.reference_BT is None else nothing_BT,
                )
        return joined_batches({name: batches[name] for name in rows_by_task(trajectories)})

    def accumulate_gradients(self, batch: Batch, rows: Tensor) -> dict[str, float]:
        """Add ``Σ_k λ_k ∇L_k`` over some episodes, each ``L_k`` a mean over the task's own tokens among them.

        Returns:
            Each task's figures behind its name, their means by weight, and the cosine of every two tasks' gradients.
        """
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        standing = [parameter.grad for parameter in parameters]
        gradients: dict[str, list[Tensor | None]] = {}
        found: dict[str, dict[str, float]] = {}
        weights: dict[str, float] = {}
        by_task = rows_by_task(batch.trajectories)
        for task in self.tasks.active:
            own = rows[torch.isin(rows, by_task[task.name])] if task.name in by_task else rows[:0]
            if not len(own):
                continue
            for parameter in parameters:
                parameter.grad = None
            with self.playing(task.name):
                if task.loss == "likelihood":
                    episodes = batch.trajectories.select(own)
                    figures = likelihood_gradients(self, episodes)
                else:
                    figures = super().accumulate_gradients(batch, own)
            gradients[task.name] = [parameter.grad for parameter in parameters]
            found[task.name], weights[task.name] = figures, task.weight
        for at, parameter in enumerate(parameters):
            terms = [weights[name] * grad for name, grads in gradients.items() if (grad := grads[at]) is not None]
            before = standing[at]
            if before is not None:
                terms.append(before)
            parameter.grad = functools.reduce(torch.add, terms) if terms else None
        stats = {f"{task}/{name}": value for task, figures in found.items() for name, value in figures.items()}
        return {**mean_by_weight(found, weights), **stats, **conflicts(gradients)}

    def log_update(self, batch: Batch, steps: list[dict[str, float]]) -> None:
        """As the algorithm does; the critic's explained variance also task by task."""
        losses = {task.name: task.loss for task in self.tasks.tasks}
        played = self._played(batch.trajectories)
        if steps:  # a task of few references may be missing in some minibatches
            common = [name for name in steps[0] if all(name in stats for stats in steps)]
            steps = [{name: stats[name] for name in common} for stats in steps]
        super().log_update(select(batch, played) if len(played) else batch, steps)
        for name, rows in rows_by_task(batch.trajectories).items():
            if batch.returns_BT is not None and losses[name] == "reward":
                part = select(batch, rows)
                assert part.returns_BT is not None
                mask_BT = part.trajectories.action_mask_BT
                variance = explained_variance(part.trajectories.values_BT, part.returns_BT, mask_BT)
                self.logger.record(f"{name}/explained_variance", variance)


class Prefixed:
    """A logger that puts a task's name before what it is told."""

    def __init__(self, logger: Any, task: str) -> None:
        self._logger, self._task = logger, task

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        """As SB3's."""
        self._logger.record(f"{self._task}/{key}", value, exclude)


def joined_batches(batches: Mapping[str, Batch]) -> Batch:
    """The batches of several tasks as one, in the order of `joined`."""

    def together(values: list[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return padded(there) if there else None

    advantages_BT = together([batch.advantages_BT for batch in batches.values()])
    assert advantages_BT is not None
    return Batch(
        joined({name: batch.trajectories for name, batch in batches.items()}),
        advantages_BT,
        together([batch.returns_BT for batch in batches.values()]),
        together([batch.reference_BT for batch in batches.values()]),
    )


def select(batch: Batch, rows: Tensor) -> Batch:
    """Some episodes of a batch, trimmed to the longest of them."""
    episodes = batch.trajectories.select(rows)
    steps = episodes.action_mask_BT.shape[1]

    def some(values_BT: Tensor | None) -> Tensor | None:
        return None if values_BT is None else values_BT[rows, :steps]

    return Batch(episodes, batch.advantages_BT[rows, :steps], some(batch.returns_BT), some(batch.reference_BT))


def mean_by_weight(found: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """Of every figure the mean over the tasks that have it, by their weights; "loss/..." is the weighted sum.

    >>> mean_by_weight({"a": {"entropy": 1.0, "loss/policy": 1.0}, "b": {"entropy": 4.0}}, {"a": 2.0, "b": 1.0})
    {'entropy': 2.0, 'loss/policy': 2.0}
    """
    figures: dict[str, float] = {}
    for name in dict.fromkeys(name for task in found.values() for name in task):
        those = [task for task in found if name in found[task]]
        total = sum(weights[task] * found[task][name] for task in those)
        figures[name] = total if name.startswith("loss/") else total / sum(weights[task] for task in those)
    return figures


def conflicts(gradients: Mapping[str, list[Tensor | None]]) -> dict[str, float]:
    """The cosine of every two tasks' gradients: below 0 they conflict (Yu et al. 2020, definition 1); 0 where one is 0.

    Before weights and clipping, over all parameters.
    """
    cosines: dict[str, float] = {}
    norms = {name: float(_dot(grads, grads)) ** 0.5 for name, grads in gradients.items()}
    for one, other in itertools.combinations(gradients, 2):
        scale = norms[one] * norms[other]
        cosine = float(_dot(gradients[one], gradients[other])) / scale if scale else 0.0
        cosines[f"tasks/cosine/{one}-{other}"] = cosine
    return {**cosines, **{f"{name}/policy/own_grad_norm": norm for name, norm in norms.items()}}


def _dot(first: list[Tensor | None], second: list[Tensor | None]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for one, other in zip(first, second, strict=True):
        if one is not None and other is not None:
            total += (one.double() * other.double()).sum().cpu()
    return total
