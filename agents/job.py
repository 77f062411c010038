"""The stages of a run, whatever it learns from, and the folder that they leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import torch
from stable_baselines3.common.logger import Logger
from tqdm.auto import tqdm

from agents.algorithms import find_algorithm
from agents.base import TextAlgorithm
from agents.callbacks import (
    CheckpointCallback,
    EvaluationCallback,
    StopOnSignal,
    append_samples,
    save_agent,
)
from agents.config import AlgorithmConfig
from agents.distributed import WorldError, is_launched, join
from agents.evaluation import Evaluation, evaluate
from agents.model_source import ModelSource
from agents.progress_bar import TokenProgressBar
from agents.report import read_evaluations, write_report
from agents.run_folder import RunFolder, check_free, write_json
from agents.settings import RunSettings
from agents.sharding import save_pretrained
from agents.supervised import SupervisedConfig, supervised_fit
from textgen_env import TextMDP

Stage: TypeAlias = Literal["world", "environment", "model", "warm start", "before", "learn", "after", "report"]
StageHook: TypeAlias = Callable[[Stage, str], None]
Rules = TypeVar("Rules")
"""What a run learns from: the rules of one task, or of several by name."""


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    folder: Path
    agent: TextAlgorithm
    interrupted: bool
    before: dict[str, Evaluation]
    """"sampled" and "greedy", on held-out prompts, before RL and after the warm start; empty if interrupted."""
    after: dict[str, Evaluation]
    """The same prompts after RL; empty if interrupted."""


class Job(Generic[Rules]):
    """The stages of one run, and what they hand on; a subclass says what it learns from.

    Under ``torchrun`` every process goes through them. Rank 0 alone speaks, evaluates and writes; what the others go by
    comes from it.

    Args:
        settings: model, lengths, output.
        config: the algorithm's options; its defaults if None.
        resume: go on in ``settings.output``.
        verbose: 1 shows progress bars, 2 also a table of metrics an update.
        say: called as each stage begins, with its name and a line about it.
    """

    def __init__(
        self,
        settings: RunSettings,
        config: AlgorithmConfig | None,
        resume: bool = False,
        verbose: int = 0,
        say: StageHook | None = None,
    ) -> None:
        self.world = join(settings.device)
        self.algorithm, config_class = find_algorithm(settings.algo)
        self.settings = settings
        self.config = config or config_class()
        if not isinstance(self.config, config_class):
            raise ValueError(f"'{settings.algo}' takes a {config_class.__name__}, not {type(self.config).__name__}")
        self.resume = resume
        self.verbose = verbose if self.world.is_main else 0
        self.say = say if say is not None and self.world.is_main else _quiet
        self.folder = RunFolder(Path(self.world.on_main(self.free_output)))
        self.results: dict[str, Any] = self.world.on_main(self.folder.read_results) if resume else {}
        self.agent: TextAlgorithm | None = None
        if is_launched():
            self.say("world", str(self.world))

    def free_output(self) -> str:
        """Where the run is to write.

        Raises:
            FileExistsError: something is there that is not to be resumed.
        """
        output = self.settings.output or f"runs/{self.settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        if not self.resume:
            check_free(Path(output))  # before hours of work, not after them
        return output

    def environments(self) -> tuple[Rules, Rules, Rules]:
        """The rules on the train split, and on the held-out ones: to watch while learning, and for the report."""
        raise NotImplementedError

    def make_agent(self, train: Rules) -> TextAlgorithm:
        """A new agent in a new folder, or the saved one."""
        raise NotImplementedError

    def warm_start(self, train: Rules) -> None:
        """Fit the references; the reference policy of RL is the model after that."""
        raise NotImplementedError

    def evaluate(self, held_out: Rules) -> dict[str, Any]:
        """Sampled and greedy, as plain data."""
        raise NotImplementedError

    def named(self, held_out: Rules) -> str:
        """What is evaluated, in a few words."""
        raise NotImplementedError

    def watch(self, watched: Rules, **options: Any) -> EvaluationCallback:
        """What evaluates while the agent learns."""
        raise NotImplementedError

    def complete(self) -> Result:
        """All stages, with as many threads as the settings say; Ctrl-C ends them early."""
        with _threads(self.settings.threads):
            try:
                return self.run()
            except KeyboardInterrupt:
                return self.finish(interrupted=True)

    def run(self) -> Result:
        """The stages in their order."""
        train, watched, held_out = self.environments()
        self.agent = self.make_agent(train)
        self.note(status="running", started=self.results.get("started", time.strftime("%Y-%m-%d %H:%M:%S")))
        if not self.world.on_main(self.folder.agent.is_file):
            self.warm_start(train)
            save_agent(self.agent, self.folder.agent)
        if "before" not in self.results:
            self.say("before", self.named(held_out))
            self.note(before=self._on_main(held_out))
        if not self.learn(watched):
            return self.finish(interrupted=True)
        self.say("after", self.named(held_out))
        self.note(after=self._on_main(held_out))
        return self.finish(interrupted=False)

    def _on_main(self, held_out: Rules) -> dict[str, Any]:
        """What `evaluate` finds, on all ranks."""
        assert self.agent is not None
        with self.agent.whole():
            return self.world.on_main(lambda: self.evaluate(held_out))

    def new_or_saved(
        self, algorithm: type[TextAlgorithm], env: Any, make_source: Callable[[], ModelSource]
    ) -> TextAlgorithm:
        """The agent of the folder's checkpoint, where there is one to go on from, or a new one.

        Raises:
            ValueError: the run is finished, or other options, or another number of processes, were given to it.
        """
        if self.resume and self.world.on_main(self.folder.agent.is_file):
            self._check_size()
            agent = algorithm.load(self.folder.agent, env=env, device=self.settings.device)
            if agent.config != self.config:
                raise ValueError("a resumed run keeps its algorithm's options: leave them out")
            if agent.num_timesteps >= self.settings.total_tokens and self.results.get("status") == "finished":
                raise ValueError(
                    f"the run in '{self.folder.path}' has done {agent.num_timesteps:,} of its "
                    f"{self.settings.total_tokens:,} tokens: ask for more with --total-tokens"
                )
            self.results.pop("after", None)
            self.world.on_main(lambda: self.folder.forget_after(agent.num_timesteps))  # all have read the checkpoint
            self.say("model", f"going on from {self.folder.agent} at {agent.num_timesteps:,} tokens")
            return agent
        agent = algorithm(
            make_source(),
            env,
            self.config,
            seed=self.settings.seed,
            device=self.settings.device,
            shard_weights=self.settings.shard_weights,
        )
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.results = {}
        self.world.on_main(lambda: self.folder.forget_after(-1))  # of a run that had no checkpoint yet
        named = "GPT-2 from scratch" if self.settings.model is None else str(self.settings.model)
        self.say("model", f"{named}, {agent.policy.model.num_parameters():,} parameters, on {agent.policy.device}")
        return agent

    def begin_folder(self, agent: TextAlgorithm, environment: dict[str, Any], warm_start_epochs: float) -> None:
        """Write every setting, and the tokenizer."""
        self.world.wait()  # a resumed run's other ranks have read theirs
        if not self.world.is_main:
            return
        resolved = {
            "environment": environment,
            "model": agent.policy.model.config.to_dict(),
            "device": str(agent.policy.device),
            "learning_rate": agent.learning_rate,
            "warm_start_epochs": warm_start_epochs,
            "eval_every": self.settings.eval_interval,
            "processes": self.world.size,
        }
        self.folder.write_config(replace(self.settings, output=str(self.folder.path)), self.config, resolved)
        self.folder.model.mkdir(exist_ok=True)
        assert agent.tokenizer is not None
        agent.tokenizer.hf.save_pretrained(str(self.folder.model))

    def _check_size(self) -> None:
        """Each rank goes on with its own generators: as many as there were."""
        saved = self.world.on_main(lambda: self.folder.read_resolved().get("processes", 1))
        if saved != self.world.size:
            raise WorldError(
                f"the run in '{self.folder.path}' was started in {saved} processes and this is a world of "
                f"{self.world.size}: resume it in {saved} (torchrun --nproc-per-node {saved}), or start a new run from "
                f"its model with --model {self.folder.model}"
            )

    def fit_references(self, agent: TextAlgorithm, train: TextMDP, epochs: float, name: str = "warm start") -> float:
        """A supervised pass or several, with a progress bar; returns the last loss."""
        with tqdm(desc=name, unit="step", dynamic_ncols=True, disable=self.verbose < 1) as bar:

            def on_step(step: int, steps: int, loss: float) -> None:
                bar.total = steps
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update(step - bar.n)

            return supervised_fit(
                agent.policy,
                train,
                SupervisedConfig(epochs=epochs, micro_batch_tokens=agent.config.micro_batch_tokens),
                seed=self.settings.seed,
                on_step=on_step,
                world=self.world,
            )

    def evaluate_on(self, mdp: TextMDP) -> dict[str, Any]:
        """Sampled and greedy, as plain data; some of the texts go to ``samples.jsonl``."""
        assert self.agent is not None
        found = {}
        for kind in ("sampled", "greedy"):
            evaluation = evaluate(
                self.agent,
                mdp,
                num_prompts=self.settings.eval_prompts,
                greedy=kind == "greedy",
                seed=self.settings.seed,
            )
            append_samples(self.folder.samples, evaluation, self.agent.num_timesteps)
            found[kind] = evaluation.to_dict()
        return found

    def learn(self, watched: Rules) -> bool:
        """RL until the asked number of tokens; False when a signal ended it before that."""
        assert self.agent is not None
        settings, agent = self.settings, self.agent
        missing = settings.total_tokens - agent.num_timesteps
        if missing <= 0:  # a run that was interrupted after its last update
            return True
        self.say("learn", f"{settings.algo}, {missing:,} tokens, evaluated every {settings.eval_interval:,}")
        every = settings.eval_interval
        checkpoint = CheckpointCallback(self.folder.agent, every=settings.checkpoint_every or every)
        watch = self.watch(
            watched,
            every=every,
            num_prompts=settings.eval_prompts,
            at_start=not self.world.on_main(self.folder.read_progress),
            seed=settings.seed,
        )
        logger = self.folder.logger(tables=self.verbose > 1) if self.world.is_main else Logger(None, [])
        agent.set_logger(logger)
        started = time.perf_counter()
        stop = StopOnSignal()
        interrupted = True
        together = self.world.size == 1  # until all ranks have left `learn`, none must wait for the others
        try:
            with stop:
                callbacks = [stop, checkpoint, watch, *([TokenProgressBar()] if self.verbose else [])]
                agent.learn(missing, callback=callbacks, reset_num_timesteps=False)
            interrupted = self.world.any(stop.requested)
            together = True
        finally:
            if not interrupted:
                save_agent(agent, self.folder.agent)
            elif together:
                checkpoint.save_interrupted()
            logger.close()
            seconds = self.results.get("learn_seconds", 0.0) + time.perf_counter() - started
            self.note(learn_seconds=seconds, tokens=agent.num_timesteps)
        return not interrupted

    def note(self, **results: Any) -> None:
        """Put something on record in ``results.json``."""
        self.results.update(results)
        if self.world.is_main:
            write_json(self.folder.results, self.results)

    def finish(self, *, interrupted: bool) -> Result:
        """Write the model and the report, with what there is."""
        if self.agent is None:
            raise KeyboardInterrupt  # nothing is there yet
        self.note(status="interrupted" if interrupted else "finished", tokens=self.agent.num_timesteps)
        save_pretrained(self.agent.policy, self.folder.model, self.world)
        if self.world.is_main:
            self.say("report", str(self.folder.path))
            write_report(self.folder)
        return Result(
            folder=self.folder.path,
            agent=self.agent,
            interrupted=interrupted,
            before=read_evaluations(self.results.get("before")),
            after={} if interrupted else read_evaluations(self.results.get("after")),
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's number of threads is the process's: set it for the run, then put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quiet(stage: Stage, detail: str) -> None:
    pass
