"""Callbacks that belong to text: evaluation with its texts, checkpoints, a clean stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.distributed import is_launched
from agents.evaluation import Evaluation, evaluate
from textgen_env import TextMDP

if TYPE_CHECKING:
    from agents.base import TextAlgorithm


class EvaluationCallback(BaseCallback):
    """Evaluates on held-out prompts at the start and every so many tokens, greedy and sampled; of several ranks rank 0.

    It runs at the end of a rollout, before the update: ``eval/reward_sampled`` and the rollout's own ``reward``
    in one log line are of the same policy. All evaluations ask the same prompts.

    Args:
        mdp: the environment's rules, on a held-out split.
        every: tokens from one evaluation to the next.
        num_prompts: prompts an evaluation.
        samples_file: JSON lines to which sample texts are appended; None writes none.
        num_samples: texts an evaluation appends, of each kind.
        at_start: whether to evaluate before the first rollout; a resumed run did so already.
        seed: seeds the choice of prompts and the sampling.
    """

    def __init__(
        self,
        mdp: TextMDP,
        *,
        every: int,
        num_prompts: int = 200,
        samples_file: str | Path | None = None,
        num_samples: int = 8,
        at_start: bool = True,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 token, got {every}")
        super().__init__()
        self.mdp = mdp
        self.every = every
        self.num_prompts = num_prompts
        self.samples_file = samples_file
        self.num_samples = num_samples
        self.at_start = at_start
        self.seed = seed

    def _on_training_start(self) -> None:
        if self.at_start:
            self._evaluate()
            self.logger.record("num_tokens", self.num_timesteps)
            self.logger.dump(self.num_timesteps)
        self._next = _next_multiple(self.num_timesteps, self.every)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert self.model is not None
        self.num_timesteps = self.model.num_timesteps  # with those of the other ranks, which were added only now
        if self.num_timesteps >= self._next:
            self._next = _next_multiple(self.num_timesteps, self.every)
            self._evaluate()

    def _evaluate(self) -> None:
        agent: Any = self.model
        with agent.whole():
            if agent.world.is_main:
                self._evaluate_both(agent)

    def _evaluate_both(self, agent: TextAlgorithm) -> None:
        for greedy in (False, True):
            found = evaluate(agent, self.mdp, num_prompts=self.num_prompts, greedy=greedy, seed=self.seed)
            kind = "greedy" if greedy else "sampled"
            self.logger.record(f"eval/reward_{kind}", found.mean)
            self.logger.record(f"eval/length_{kind}", found.mean_length)
            self.logger.record(f"eval/clipped_ratio_{kind}", found.clipped_ratio)
            self.logger.record(f"eval/distinct_2_{kind}", found.distinct_2)
            if not greedy:
                self.logger.record("eval/entropy", found.entropy)
                if found.kl_per_sequence is not None:
                    self.logger.record("eval/kl_per_sequence", found.kl_per_sequence)
            for name, value in found.components.items():
                self.logger.record(f"eval/rewards/{name}_{kind}", value)
            if self.samples_file is not None:
                append_samples(self.samples_file, found, self.num_timesteps, limit=self.num_samples)


class CheckpointCallback(BaseCallback):
    """Saves the agent between two updates, every so many tokens, so that a killed run can go on.

    A checkpoint is written under a temporary name and then put in place: at every moment the file is whole.

    Args:
        path: the file, ``agent.zip`` say. Each checkpoint replaces the one before.
        every: tokens from one checkpoint to the next.
    """

    def __init__(self, path: str | Path, *, every: int) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 token, got {every}")
        super().__init__()
        self.path = Path(path)
        self.every = every
        self._boundary: tuple[int, dict[str, Any]] | None = None

    def _on_training_start(self) -> None:
        self._next = _next_multiple(self.num_timesteps, self.every)
        self._mark_boundary()

    def _on_step(self) -> bool:
        return True

    def _mark_boundary(self) -> None:
        agent: Any = self.model
        self._boundary = (agent.num_timesteps, agent.collector.state())

    def _on_rollout_start(self) -> None:
        # Here, and not at the rollout's end: there the tokens are counted but nothing is learned from them yet.
        self._mark_boundary()
        agent: Any = self.model
        if agent.num_timesteps >= self._next:
            self._next = _next_multiple(agent.num_timesteps, self.every)
            save_agent(agent, self.path)

    def save_interrupted(self) -> None:
        """Save a run that stopped within a rollout as it was before that rollout, which a resumed run repeats."""
        if self._boundary is None:
            return  # it stopped before the first rollout: nothing has changed
        agent: Any = self.model
        agent.num_timesteps, state = self._boundary
        agent.collector.load_state(state)
        save_agent(agent, self.path)


class StopOnSignal(BaseCallback):
    """Ends learning at the next step on Ctrl-C or SIGTERM: in a rollout, never in the middle of an update.

    A context manager: the signals are handled while it is entered. A second Ctrl-C interrupts at once. Under torchrun
    it does not: there the first one comes twice, from the terminal and from the launcher, which gives its processes 30
    seconds.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if is_launched():
            self.requested = True
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this update; once more stops at once", file=sys.stderr)

    def _on_step(self) -> bool:
        return not self.requested


def save_agent(agent: TextAlgorithm, path: Path) -> None:
    """Save an agent so that ``path`` holds, at every moment, the old checkpoint or the new one. All ranks call it."""
    if agent.world.is_main:
        replace_file(path, agent.save)
    else:
        agent.save(path)


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name, then put it in its place."""
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


def append_samples(path: str | Path, found: Evaluation, step: int, *, limit: int = 8) -> None:
    """Append an evaluation's first texts to a file, one JSON object a line.

    Args:
        path: the file; it is made where there is none.
        found: the evaluation.
        step: tokens the agent had learned from.
        limit: how many texts.
    """
    with Path(path).open("a", encoding="utf-8") as file:
        for sample in found.samples[:limit]:
            line = {
                "step": step,
                "split": found.split,
                "greedy": found.greedy,
                "prompt": sample.prompt,
                "completion": sample.completion,
                "reference": sample.reference,
                "score": sample.score,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _next_multiple(done: int, every: int) -> int:
    return (done // every + 1) * every
