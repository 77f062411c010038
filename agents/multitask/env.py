"""Several tasks as one environment, and a rollout that takes from each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

from agents.config import check_choice
from agents.decoder import Decoder
from agents.environments import restore_reward, row_info
from agents.logged import reference_episodes
from agents.policy import TextPolicy
from agents.rollout import ActionRule, Collector, StepHook
from agents.trajectories import Trajectories
from textgen_env import TextGenVectorEnv, TextMDP

TaskLoss: TypeAlias = Literal["reward", "likelihood"]
TASK = "task"
"""The key of a task's name in the info of its episodes."""


@dataclass(frozen=True)
class Task:
    """One of several tasks that a policy learns.

    Raises:
        ValueError: the weight is negative, the loss unknown, or the name has a slash in it.
    """

    name: str
    """Stands before the task's metrics."""
    mdp: TextMDP
    """Its rules, under the tokenizer that all tasks share (see `agents.multitask.words`)."""
    weight: float = 1.0
    """λ of its loss. 0 is as if the task were not there."""
    loss: TaskLoss = "reward"
    """The algorithm's own loss, or "likelihood": −log π of the task's references, as in supervised learning."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"the weight of task '{self.name}' must be 0 or above, got {self.weight}")
        check_choice(f"the loss of task '{self.name}'", self.loss, TaskLoss)
        if not self.name or "/" in self.name:
            raise ValueError(f"a task's name stands before its metrics: '{self.name}' must have no slash, and a letter")


class TaskRows(VectorEnv[Any, Any, Any]):
    """Rows of several tasks side by side, in ``AutoresetMode.DISABLED``: what any Gymnasium or SB3 client can step.

    Every row belongs to one task for good; ``infos["task"]`` names it.

    Args:
        tasks: two of them or more, or one.
        num_envs: rows, shared out evenly.

    Raises:
        ValueError: there are more tasks than rows or none that counts, names repeat, or vocabularies differ.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # type: ignore[misc]

    def __init__(self, tasks: Sequence[Task], num_envs: int = 32) -> None:
        self.tasks = tuple(tasks)
        names = [task.name for task in self.tasks]
        if not any(task.weight for task in self.tasks):
            raise ValueError("no task has a weight above 0: there is nothing to learn")
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks have the same name: {', '.join(names)}")
        if num_envs < len(names):
            raise ValueError(f"num_envs={num_envs} rows are too few for {len(names)} tasks")
        sizes = {task.name: task.mdp.tokenizer.hf.get_vocab() for task in self.tasks}
        for name in names[1:]:
            if sizes[name] != sizes[names[0]]:
                raise ValueError(
                    f"'{names[0]}' and '{name}' speak different tokenizers: see agents.multitask.words.share_tokenizer"
                )
        self.num_envs = num_envs
        self.render_mode = None
        self.envs = tuple(
            TextGenVectorEnv(rows, mdp=task.mdp, autoreset_mode=AutoresetMode.DISABLED)
            for task, rows in zip(self.tasks, shares(num_envs, len(names)), strict=True)
        )
        self._starts = np.cumsum([0, *[env.num_envs for env in self.envs]])
        self._length = max(env.single_observation_space["input_ids"].shape[0] for env in self.envs)  # type: ignore[index]
        vocab = self.tasks[0].mdp.tokenizer.vocab_size
        self.single_observation_space = spaces.Dict(
            {
                "input_ids": spaces.Box(0, vocab - 1, (self._length,), np.int64),
                "attention_mask": spaces.Box(0, 1, (self._length,), np.int8),
            }
        )
        self.single_action_space = spaces.Discrete(vocab)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seen: list[Any] = [None] * len(self.envs)

    @property
    def active(self) -> tuple[Task, ...]:
        """The tasks that count."""
        return tuple(task for task in self.tasks if task.weight)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every row, or in those of ``options["reset_mask"]``."""
        options = options or {}
        unknown = set(options) - {"reset_mask"}
        if unknown:
            raise ValueError(f"unknown reset option '{unknown.pop()}': rows of several tasks know 'reset_mask' alone")
        mask = options.get("reset_mask")
        infos: dict[str, Any] = {}
        for at, env, rows in self._blocks():
            if mask is not None and not mask[rows].any():
                continue
            first = None if seed is None else seed[rows] if isinstance(seed, list) else seed + rows.start
            self._seen[at], found = env.reset(
                seed=first, options=None if mask is None else {"reset_mask": np.asarray(mask[rows])}
            )
            infos = self._noted(infos, found, at, rows)
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Append one token to every running row."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=np.bool_), np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        for at, env, rows in self._blocks():
            self._seen[at], rewards[rows], terminated[rows], truncated[rows], found = env.step(
                np.asarray(actions)[rows]
            )
            infos = self._noted(infos, found, at, rows)
        return self._observations(), rewards, terminated, truncated, infos

    def _blocks(self) -> Iterator[tuple[int, TextGenVectorEnv, slice]]:
        for at, env in enumerate(self.envs):
            yield at, env, slice(int(self._starts[at]), int(self._starts[at + 1]))

    def _noted(self, infos: dict[str, Any], found: dict[str, Any], at: int, rows: slice) -> dict[str, Any]:
        for row in range(self.envs[at].num_envs):
            info = row_info(found, row)
            if info:
                infos = self._add_info(infos, {**info, TASK: self.tasks[at].name}, rows.start + row)
        return infos

    def _observations(self) -> dict[str, npt.NDArray[Any]]:
        found = {}
        for key in ("input_ids", "attention_mask"):
            parts = [np.pad(seen[key], ((0, 0), (0, self._length - seen[key].shape[1]))) for seen in self._seen]
            found[key] = np.concatenate(parts)
        return found


class TaskCollector:
    """A `Collector` for each task that counts; a rollout is a fixed number of episodes of every one.

    It has a collector's interface. Each task has generators of its own, so that a task that comes or goes behind the
    others changes nothing for them; the first has the agent's seed, and with one task all is as without this class.

    Args:
        env: the tasks.
        policy: the policy that acts.
        seed: seeds sampling and prompt orders.
    """

    def __init__(self, env: TaskRows, policy: TextPolicy, *, seed: int | None = None) -> None:
        seeds = [seed, *(int(state) for state in np.random.SeedSequence(seed).generate_state(len(env.tasks)))]
        self.env, self.policy = env, policy
        self.tasks = {task.name: task for task in env.active}
        self.parts: dict[str, Collector] = {}
        for task, own_seed, rows in zip(env.active, seeds, shares(env.num_envs, len(self.tasks)), strict=False):
            rows_env = TextGenVectorEnv(
                rows, mdp=task.mdp, autoreset_mode=AutoresetMode.DISABLED, defer_scoring=not task.mdp.is_dense
            )
            self.parts[task.name] = Collector(rows_env, policy, seed=own_seed)
        self._first = next(iter(self.parts.values()))
        self.shuffle = self._first.shuffle
        self._references: dict[str, Trajectories] = {}

    @property
    def generator(self) -> torch.Generator:
        """For whoever samples outside a rollout."""
        return self._first.generator

    @property
    def constrains(self) -> bool:
        """As `Collector.constrains`, of all tasks."""
        return self._first.constrains

    @constrains.setter
    def constrains(self, value: bool) -> None:
        for part in self.parts.values():
            part.constrains = value

    @property
    def make_decoder(self) -> Callable[[TextPolicy, int, int], Decoder]:
        """As `Collector.make_decoder`, of all tasks."""
        return self._first.make_decoder

    @make_decoder.setter
    def make_decoder(self, value: Callable[[TextPolicy, int, int], Decoder]) -> None:
        for part in self.parts.values():
            part.make_decoder = value

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on alike: each task's generators and prompts, and what its reward adapted."""
        return {
            name: {**part.state(), "reward": self.tasks[name].mdp.reward.state()} for name, part in self.parts.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; a task that was not there begins afresh."""
        for name, part in self.parts.items():
            if name in state:
                part.load_state(state[name])
                if state[name]["reward"]:
                    restore_reward(self.tasks[name].mdp.reward, state[name]["reward"])

    def collect(
        self,
        num_episodes: int,
        *,
        samples_per_prompt: int = 1,
        prompt_indices: Sequence[int] | None = None,
        greedy: bool = False,
        act: ActionRule | None = None,
        on_step: StepHook | None = None,
    ) -> TaskTrajectories | None:
        """Start ``num_episodes`` episodes, as many of each task (one prompt more or less), and play them to their end.

        Tasks with the loss "likelihood" are not played: their episodes are drawn from their references.

        Raises:
            ValueError: there are fewer prompts than tasks, or an argument is about the episodes of one task.
        """
        if prompt_indices is not None or act is not None:
            raise ValueError("prompt_indices and act are about the episodes of one task: ask its own collector")
        if num_episodes % samples_per_prompt:
            raise ValueError(f"num_episodes={num_episodes} must be a multiple of {samples_per_prompt=}")
        found: dict[str, Trajectories] = {}
        for name, prompts in zip(self.parts, shares(num_episodes // samples_per_prompt, len(self.parts)), strict=True):
            count = prompts * samples_per_prompt
            played: Trajectories | None
            if self.tasks[name].loss == "likelihood":
                played = self._drawn(name, count, on_step)
            else:
                played = self.parts[name].collect(
                    count, samples_per_prompt=samples_per_prompt, greedy=greedy, on_step=on_step
                )
            if played is None:
                return None
            found[name] = played
        return joined(found)

    def _drawn(self, name: str, count: int, on_step: StepHook | None) -> Trajectories | None:
        if name not in self._references:
            self._references[name] = reference_episodes(self.tasks[name].mdp)
        references = self._references[name]
        rows = self.parts[name].shuffle.choice(len(references), size=min(count, len(references)), replace=False)
        drawn = references.select(rows.tolist()).to(self.policy.device)
        step = {"infos": drawn.infos, "dones": np.ones(len(drawn), dtype=np.bool_), "num_running": drawn.num_tokens}
        return drawn if on_step is None or on_step(step) else None


class TaskTrajectories(Trajectories):
    """Episodes of several tasks, one task after the other; ``infos[i]["task"]`` names the task of episode i."""

    def minibatches(self, count: int, generator: np.random.Generator) -> Iterator[Tensor]:
        """As for one task; every minibatch gets the same share of each."""
        by_task = []
        for rows in rows_by_task(self).values():
            groups = torch.unique(self.prompt_groups_B[rows])
            order = groups[torch.from_numpy(generator.permutation(len(groups))).to(groups.device)]
            by_task.append(order.tensor_split(count))
        for chosen in zip(*by_task, strict=True):
            yield torch.isin(self.prompt_groups_B, torch.cat(chosen)).nonzero().squeeze(-1).cpu()


def rows_by_task(episodes: Trajectories) -> dict[str, Tensor]:
    """Task name -> the numbers of its episodes."""
    rows: dict[str, list[int]] = {}
    for row, info in enumerate(episodes.infos):
        rows.setdefault(info[TASK], []).append(row)
    return {name: torch.tensor(found) for name, found in rows.items()}


def joined(parts: Mapping[str, Trajectories]) -> TaskTrajectories:
    """The episodes of several tasks, padded to the longest; prompts of different tasks are different groups."""
    constrained = any(part.allowed_BTV is not None for part in parts.values())
    tensors: dict[str, list[Tensor]] = {}
    infos: list[dict[str, Any]] = []
    groups = 0
    for name, part in parts.items():
        _, group_B = torch.unique(part.prompt_groups_B, return_inverse=True)
        part = part.replace(prompt_groups_B=group_B + groups)
        groups += int(group_B.max()) + 1
        for each in fields(part):
            value = getattr(part, each.name)
            if each.name == "allowed_BTV" and value is None and constrained:
                value = part.action_mask_BT.new_ones((*part.action_mask_BT.shape, 1))
            if isinstance(value, Tensor):
                tensors.setdefault(each.name, []).append(value)
        infos += [{**info, TASK: name} for info in part.infos]
    return TaskTrajectories(**{name: padded(values) for name, values in tensors.items()}, infos=tuple(infos))


def padded(values: Sequence[Tensor]) -> Tensor:
    """One after the other along the first dimension, the second filled up with 0, the third as wide as the widest.

    (What is allowed outside the mask does not count; inside it, a third dimension of 1 stands for all.)
    """
    if values[0].ndim == 1:
        return torch.cat(list(values))
    width = max(value.shape[1] for value in values)
    if values[0].ndim == 3:
        depth = max(value.shape[2] for value in values)
        values = [value.expand(-1, -1, depth) for value in values]
        return torch.cat([nn.functional.pad(value, (0, 0, 0, width - value.shape[1]), value=True) for value in values])
    return torch.cat([nn.functional.pad(value, (0, width - value.shape[1])) for value in values])


def shares(total: int, parts: int) -> list[int]:
    """A whole number in as even parts as can be, the larger first.

    >>> shares(8, 3)
    [3, 3, 2]

    Raises:
        ValueError: there would be empty parts.
    """
    least, more = divmod(total, parts)
    if not least:
        raise ValueError(f"{total} cannot be shared among {parts} tasks: raise num_envs or episodes_per_rollout")
    return [least + (part < more) for part in range(parts)]
