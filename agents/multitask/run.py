"""A run on several tasks, from prompts to report: the pipeline's stages, each over all tasks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.base import TextAlgorithm
from agents.callbacks import EvaluationCallback
from agents.config import AlgorithmConfig, option
from agents.evaluation import on_split
from agents.job import Job, Result, StageHook
from agents.multitask.agent import Prefixed, multitask
from agents.multitask.env import Task, TaskRows
from agents.multitask.words import share_tokenizer
from agents.settings import ENVIRONMENT_FIELDS, RunSettings, environment_ids, make_mdp, make_model
from textgen_env import TextMDP, TextTokenizer
from textgen_env.lookup import did_you_mean

_OF_A_TASK = (*ENVIRONMENT_FIELDS, "weight", "loss")


@dataclass
class MultiTaskSettings(RunSettings):
    """The options of a run on several tasks: those of one, but for what each task says for itself."""

    tasks: Any = None
    """Name -> the settings of `ENVIRONMENT_FIELDS` that differ from their defaults, ``weight`` and ``loss``."""
    mark_tasks: bool = option(False, "begin every prompt with a word for its task (tasks with words of their own)")

    def _check_source(self) -> None:
        if not self.tasks:
            raise ValueError("name the tasks: ID=WEIGHT, or a .json file of them")
        train, validation, test = self.split_fractions  # a list where it was read from JSON
        self.split_fractions = (train, validation, test)
        self._refuse_changed(ENVIRONMENT_FIELDS, "each task has its own: set it there")
        if self.logged is not None:
            raise ValueError("logged has no effect here: a task with the loss 'likelihood' learns its references")
        for name, task in self.tasks.items():
            for key in task:
                if key not in _OF_A_TASK:
                    raise ValueError(f"task '{name}' has the unknown setting '{key}'; {did_you_mean(key, _OF_A_TASK)}")

    @property
    def name(self) -> str:
        """The tasks' names and the algorithm's."""
        return f"{'+'.join(self.tasks)}-{self.algo}"

    def task_settings(self, name: str) -> RunSettings:
        """A task's environment, as a run on it alone would have it."""
        own = {key: value for key, value in self.tasks[name].items() if key in ENVIRONMENT_FIELDS}
        try:
            return RunSettings(**own, model=self.model)
        except ValueError as error:
            raise ValueError(f"task '{name}': {error}") from error


def parse_tasks(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Tasks as a user names them: ``ID``, ``ID=WEIGHT`` (of a built-in id the name will do), or one .json file.

    Raises:
        ValueError: an id is unknown, a weight is no number, a task is named twice, or the file holds no tasks.
        OSError: the file cannot be read.
    """
    if len(words) == 1 and words[0].endswith(".json"):
        return _read_tasks(Path(words[0]))
    tasks: dict[str, dict[str, Any]] = {}
    for word in words:
        id, equals, weight = word.partition("=")
        name = id.rpartition(":")[2].rpartition("/")[2].removesuffix("-v0")
        if name in tasks:
            raise ValueError(f"the task '{name}' is named twice")
        try:
            tasks[name] = {"env": _id_of(id), "weight": float(weight) if equals else 1.0}
        except ValueError as error:
            if "float" in str(error):
                raise ValueError(f"'{word}': the weight '{weight}' is no number") from None
            raise
    return tasks


def _id_of(id: str) -> str:
    known = environment_ids()
    if ":" in id or id in known:
        return id
    full = f"textgen_env/{id}-v0"
    if full not in known:
        short = [each.removeprefix("textgen_env/").removesuffix("-v0") for each in known]
        raise ValueError(f"unknown task '{id}'; {did_you_mean(id, [*short, *known])}")
    return full


def _read_tasks(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(tasks, dict) or not all(isinstance(task, dict) for task in tasks.values()):
        raise ValueError(f'{path}: expected {{"name": {{"env": ..., "weight": ...}}, ...}}')
    return tasks


def run_multitask(
    settings: MultiTaskSettings,
    config: AlgorithmConfig | None = None,
    *,
    resume: bool = False,
    verbose: int = 0,
    on_stage: StageHook | None = None,
) -> Result:
    """Train an agent on several tasks and leave a folder with everything about it, as `agents.pipeline.run` does.

    Evaluations stand under ``"TASK, sampled"`` and ``"TASK, greedy"``.

    Raises:
        ValueError: the settings do not fit together, or something they name is unknown.
        OSError: a file cannot be read, or the output folder is not empty.
    """
    return _MultiTaskJob(settings, config, resume, verbose, on_stage).complete()


class _MultiTaskJob(Job[dict[str, TextMDP]]):
    """A run on several tasks."""

    settings: MultiTaskSettings

    def environments(self) -> tuple[dict[str, TextMDP], dict[str, TextMDP], dict[str, TextMDP]]:
        """The rules of every task, in each split."""
        settings = self.settings
        own = {name: make_mdp(settings.task_settings(name)) for name in settings.tasks}
        shared = None
        if settings.model is not None:
            shared = next(iter(own.values())).tokenizer
        elif self.resume and self.folder.model.is_dir() and not any(mdp.task.vocabulary for mdp in own.values()):
            shared = TextTokenizer(self.folder.model)  # the data may have grown since it was trained
        train = share_tokenizer(own, tokenizer=shared, mark=settings.mark_tasks, vocab_size=settings.vocab_size)
        watched, held_out = {}, {}
        for name, mdp in train.items():
            splits = [split for split in ("validation", "test") if mdp.task.splits.get(split)]
            if not splits:
                raise ValueError(f"task '{name}' has no prompts held out: give it more, or larger split_fractions")
            watched[name], held_out[name] = on_split(mdp, splits[0]), on_split(mdp, splits[-1])
            task = self.task(name, mdp)
            self.say("environment", f"{name}, λ = {task.weight:g}, {self.learned(task)}: {mdp.task!r}")
        return train, watched, held_out

    def task(self, name: str, mdp: TextMDP) -> Task:
        """A task with its weight and its loss."""
        own = self.settings.tasks[name]
        return Task(name, mdp, own.get("weight", 1.0), own.get("loss", "reward"))

    @staticmethod
    def learned(task: Task) -> str:
        """What a task is learned from, in a few words."""
        return "likelihood of its references" if task.loss == "likelihood" else f"reward {task.mdp.reward.name}"

    def make_agent(self, train: dict[str, TextMDP]) -> TextAlgorithm:
        """A new agent in a new folder, or the saved one."""
        tasks = [self.task(name, mdp) for name, mdp in train.items()]
        rows = TaskRows(tasks, max(self.config.num_envs, len(tasks)))
        longest = max(train.values(), key=lambda mdp: mdp.max_prompt_tokens + mdp.max_new_tokens)
        agent = self.new_or_saved(multitask(self.algorithm), rows, lambda: make_model(self.settings, longest))
        environment = {
            "task": "; ".join(f"{task.name} (λ = {task.weight:g}): {task.mdp.task!r}" for task in tasks),
            "reward": "; ".join(f"{task.name}: {self.learned(task)}" for task in tasks),
            "vocab_size": longest.tokenizer.vocab_size,
        }
        self.begin_folder(agent, environment, self.warm_start_epochs(train))
        return agent

    def warm_start_epochs(self, train: Mapping[str, TextMDP]) -> float:
        """As asked; by default none: a task with the loss 'likelihood' is there for that."""
        return self.settings.warm_start_epochs or 0.0

    def warm_start(self, train: dict[str, TextMDP]) -> None:
        """Fit the references, one task after the other."""
        assert self.agent is not None
        epochs = self.warm_start_epochs(train)
        if epochs:
            losses = {}
            for name, mdp in train.items():
                self.say("warm start", f"{name}: {epochs:g} epochs over the references of {len(mdp.prompts):,} prompts")
                losses[name] = self.fit_references(self.agent, mdp, epochs, name)
            self.agent.refresh_reference()
            self.note(warm_start_loss=losses)

    def evaluate(self, held_out: dict[str, TextMDP]) -> dict[str, Any]:
        """Every task, sampled and greedy."""
        return {
            f"{name}, {kind}": found for name, mdp in held_out.items() for kind, found in self.evaluate_on(mdp).items()
        }

    def named(self, held_out: dict[str, TextMDP]) -> str:
        """Tasks and splits."""
        return ", ".join(f"{name} ({mdp.split} split)" for name, mdp in held_out.items())

    def watch(self, watched: dict[str, TextMDP], **options: Any) -> EvaluationCallback:
        """Evaluations behind the tasks' names."""
        return TasksEvaluation(watched, samples_file=self.folder.samples, **options)


class TasksEvaluation(EvaluationCallback):
    """`EvaluationCallback` on several tasks: ``Reverse/eval/reward_greedy``, ...

    Args:
        mdps: name -> rules, on a held-out split.
        **options: see `EvaluationCallback`.
    """

    def __init__(self, mdps: Mapping[str, TextMDP], **options: Any) -> None:
        super().__init__(next(iter(mdps.values())), **options)
        self.mdps = dict(mdps)
        self._task: str | None = None

    @property
    def logger(self) -> Any:
        """The agent's, behind the name of the task that is being evaluated."""
        return self.model.logger if self._task is None else Prefixed(self.model.logger, self._task)

    def _evaluate(self) -> None:
        for name, mdp in self.mdps.items():
            self._task, self.mdp = name, mdp
            super()._evaluate()
        self._task = None


def resumed_settings(written: Mapping[str, Any], **changes: Any) -> MultiTaskSettings:
    """The settings of a run's folder, some of them changed.

    Raises:
        ValueError: the run is one on a single task.
    """
    names = {field.name for field in dataclasses.fields(MultiTaskSettings)}
    if not written.get("tasks"):
        raise ValueError("this is a run on one task: go on with textgen train --resume")
    return MultiTaskSettings(**{key: value for key, value in {**written, **changes}.items() if key in names})
