"""Reinforcement learning from human feedback as one loop: samples, judgements, reward model, policy, evaluation, again.

Each round (Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022), the policy as it is writes pairs of
completions, annotators compare or rate them, a reward model is fitted to all judgements so far, and the policy goes on
learning from its score, less a charge for the KL from the model that the loop started from. A stage's results are
files, and the next one reads nothing else: so the loop goes on after any interruption, and simulated annotators' gold
reward has no way to the learner.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from agents.algorithms import ALGORITHMS, find_algorithm
from agents.base import TextAlgorithm
from agents.policy_gradient import PolicyGradient, PolicyGradientConfig
from agents.rlhf.evaluation import TEXTS, changes, measure_policy
from agents.rlhf.feedback import (
    GIVEN,
    accuracy_from_agreement,
    ask_people,
    best_agreement,
    gold_of,
    how_to_go_on,
    items_of,
    judged_files,
    load_items,
    seed_of,
    simulate,
    write_pairs,
)
from agents.rlhf.folder import (
    EVALUATION,
    FEEDBACK,
    POLICY,
    REWARD_MODEL,
    SAMPLES,
    STAGES,
    LoopFolder,
    Stage,
    read_lines,
    write_lines,
)
from agents.rlhf.judgements import held_out_prompts, read_given, split_judgements
from agents.rlhf.policy import learn_policy
from agents.rlhf.report import write_report
from agents.rlhf.reward import Scorer, fit_reward, held_out_judgements, load_reward
from agents.rlhf.settings import RLHFSettings, make_environment, unjudged
from agents.run_folder import RunFolder, check_free, write_json
from reward_models.feedback import write_items
from reward_models.preference import FitConfig
from textgen_env import TextGenVectorEnv, TextMDP

Status: TypeAlias = Literal["finished", "waiting", "interrupted"]
StageHook: TypeAlias = Callable[[str, str], None]
Found: TypeAlias = dict[str, Any]

CHANGEABLE_ON_RESUME = ("rounds", "output", "device", "threads")
_PACKAGES = ("torch", "transformers", "tokenizers", "gymnasium", "stable-baselines3", "numpy")


@dataclass(frozen=True)
class RLHFResult:
    """What a loop came to."""

    folder: Path
    status: Status
    """"waiting": people are to judge first."""
    start: Found
    """The model it started from, on held-out prompts."""
    rounds: list[Found]
    """What each finished round found."""
    instructions: str
    """How to go on where it is not finished."""

    @property
    def model(self) -> Path | None:
        """The folder of the newest policy, which ``AutoModelForCausalLM`` loads; None before the first."""
        return LoopFolder(self.folder).stage(len(self.rounds), POLICY).path / "model" if self.rounds else None


def rlhf(
    settings: RLHFSettings,
    config: PolicyGradientConfig | None = None,
    fit: FitConfig | None = None,
    *,
    resume: bool = False,
    enough: bool = False,
    verbose: int = 0,
    on_stage: StageHook | None = None,
) -> RLHFResult:
    """Run the loop, or go on with one. Ctrl-C keeps what there is.

    Args:
        settings: all that is not about the reward model's fit or the algorithm.
        config: the algorithm's options; its defaults if None.
        fit: options of the reward model's fit; the defaults if None.
        resume: go on in ``settings.output``, whose options must be the same except for ``rounds``, ``device`` and
            ``threads``. What a finished stage left is not made again.
        enough: where people judge, go on with the judgements that are there.
        verbose: 1 shows a progress bar of the reinforcement learning.
        on_stage: called as each stage begins, with its name and a line about it.

    Raises:
        ValueError: options do not fit together, or something they name is unknown.
        OSError: a file cannot be read, or the output folder is not empty.
    """
    output = settings.output or f"runs/{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    settings = dataclasses.replace(settings, output=output)
    loop = _Loop(settings, _checked(settings, config), fit or FitConfig(), enough, verbose, on_stage or _quiet)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        return loop.run(resume)
    except KeyboardInterrupt:
        if not loop.folder.config.is_file():
            raise  # nothing is there yet
        return loop.result("interrupted", f"textgen rlhf --resume {output}")
    finally:
        torch.set_num_threads(threads)


def _checked(settings: RLHFSettings, config: PolicyGradientConfig | None) -> PolicyGradientConfig:
    algorithm, config_class = find_algorithm(settings.algo)
    if not issubclass(algorithm, PolicyGradient):
        fit = ", ".join(name for name, (kind, _) in ALGORITHMS.items() if issubclass(kind, PolicyGradient))
        raise ValueError(
            f"'{settings.algo}' knows no KL from a reference, which keeps a learned reward honest: {fit} do"
        )
    config = config or config_class()  # type: ignore[assignment]
    if not isinstance(config, config_class) or not isinstance(config, PolicyGradientConfig):
        raise ValueError(f"'{settings.algo}' takes a {config_class.__name__}, not {type(config).__name__}")
    if config.kl_coef_per_sequence == 0:
        raise ValueError(
            "kl_coef_per_sequence=0 lets the policy go where its reward model knows nothing: give a small one"
        )
    return config


class _Loop:
    """The stages, each from files to files."""

    def __init__(
        self,
        settings: RLHFSettings,
        config: PolicyGradientConfig,
        fit: FitConfig,
        enough: bool,
        verbose: int,
        say: StageHook,
    ) -> None:
        self.settings, self.config, self.fit = settings, config, fit
        self.enough, self.verbose, self.say = enough, verbose, say
        self.algorithm, _ = find_algorithm(settings.algo)
        assert settings.output is not None
        self.folder = LoopFolder(Path(settings.output))

    def run(self, resume: bool) -> RLHFResult:
        settings = self.settings
        if resume:
            self.check_same()
        else:
            check_free(self.folder.path)  # before hours of work, not after them
        self.mdp = make_environment(settings)
        if not resume:  # a file that will not do is refused now, too
            given = read_given(settings)
            if settings.annotators == "none":
                self.split(given)
        self.gold = gold_of(settings, self.mdp)
        self.write_config()
        self.say("environment", f"{self.mdp.task!r}, at most {self.mdp.max_new_tokens} new tokens")
        self.do(self.folder.start, "start", self.measure_start)
        for round in range(1, settings.rounds + 1):
            waits = not all(
                self.do(self.folder.stage(round, name), f"round {round}", work, round)
                for name, work in zip(
                    STAGES, (self.sample, self.judge, self.fit_reward_model, self.learn, self.measure), strict=True
                )
            )
            if waits:
                return self.result("waiting", how_to_go_on(self.folder, round, self.folder.stage(round, FEEDBACK)))
            self.result("interrupted")  # what there is, should the next round never end
        return self.result("finished")

    def do(self, stage: Stage, title: str, work: Callable[..., Found | None], *arguments: Any) -> bool:
        """Do a stage that is not done; False if it cannot be yet."""
        if stage.found is None:
            self.say(title, stage.path.name.partition("-")[2].replace("-", " ") or "the model as it is")
            wall, cpu = time.perf_counter(), time.process_time()
            found = work(stage, *arguments)
            if found is None:
                return False
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            stage.finish({**found, "seconds": seconds})
            for line in _lines(found):
                self.say("", line)
        return True

    # ---------------------------------------------------------------- the stages

    def sample(self, stage: Stage, round: int) -> Found:
        """Pairs of completions of training prompts, by the policy as it is."""
        stage.clear()
        settings, rules = self.settings, self.mdp.with_reward(unjudged)
        agent = self.policy_before(round, self.env(rules))
        texts = write_pairs(agent, rules, settings.comparisons, seed=seed_of(settings.seed, round, 1))
        source = f"round {round - 1}" if round > 1 else "start"
        items = [] if settings.annotators == "none" else items_of(texts, settings.feedback_kind, source)
        write_items(stage.path / "items.jsonl", items)
        write_lines(stage.path / TEXTS, [{"prompt": prompt, "completion": text} for prompt, text in texts])
        return {"texts": len(texts), "items": len(items)}

    def judge(self, stage: Stage, round: int) -> Found | None:
        """Judgements of those texts, in the first round with those that exist already; None while people are asked."""
        given = read_given(self.settings) if round == 1 else []
        found: Found | None = {"judgements": 0, "raw_agreement": None}
        if self.settings.annotators == "none":
            stage.clear()
        else:
            items = load_items(self.folder.stage(round, SAMPLES))
            found = (
                ask_people(self.settings, items, stage, enough=self.enough)
                if self.gold is None
                else simulate(self.settings, self.gold, round, items, stage)
            )
        if given and found is not None:
            write_lines(stage.path / GIVEN, given)
            found["given"] = len(given)
        return found

    def fit_reward_model(self, stage: Stage, round: int) -> Found:
        """A reward model of all judgements so far, its scores of the first samples mean 0 and deviation 1."""
        stage.clear()
        judgements = [
            record
            for earlier in range(1, round + 1)
            for path in judged_files(self.folder.stage(earlier, FEEDBACK))
            for record in read_lines(path)
        ]
        return fit_reward(
            self.settings,
            self.fit,
            self.split(judgements),
            stage,
            normalise_to=self.folder.stage(1, SAMPLES).path / TEXTS,
            seed=seed_of(self.settings.seed, round, 3),
        )

    def learn(self, stage: Stage, round: int) -> Found:
        """Reinforcement learning from the reward model, from the policy as it is.

        Raises:
            KeyboardInterrupt: a signal ended it; the checkpoint is there.
        """
        env = self.env(self.mdp.with_reward(self.reward_model(round)))
        return learn_policy(
            self.settings,
            self.algorithm,
            env,
            stage,
            begin=lambda: self.policy_before(round, env),
            verbose=self.verbose,
            say=lambda line: self.say("", line),
        )

    def measure(self, stage: Stage, round: int) -> Found:
        """The new policy on held-out prompts, and what changed since the start."""
        stage.clear()
        saved = RunFolder(self.folder.stage(round, POLICY).path).agent
        reward = self.reward_model(round)
        found = self.on_held_out(stage, self.algorithm.load(saved, device=self.settings.device), reward)
        found |= changes(self.folder.start.path / TEXTS, stage.path / TEXTS, reward)
        if self.gold is not None:
            judged = held_out_judgements(self.folder.stage(round, REWARD_MODEL))
            found[f"best_{self.settings.measure}"] = best_agreement(self.settings, self.gold, judged)
        return found

    def measure_start(self, stage: Stage) -> Found:
        """The model that the loop starts from, on the same held-out prompts."""
        stage.clear()
        return self.on_held_out(stage, self.policy_before(1, self.env(self.mdp.with_reward(unjudged))), None)

    # ---------------------------------------------------------------- what they share

    def split(self, judgements: list[Found]) -> dict[str, list[Mapping[str, Any]]]:
        """Judgements to learn from, to stop by and to measure on."""
        return split_judgements(judgements, self.settings.held_out_share, held_out_prompts(self.mdp))

    def on_held_out(self, stage: Stage, agent: TextAlgorithm, reward: Scorer | None) -> Found:
        """An agent's figures."""
        settings = self.settings
        options: dict[str, Any] = {"num_prompts": settings.eval_prompts, "seed": settings.seed}
        return measure_policy(agent, self.mdp, stage, reward=reward, gold=self.gold, **options)

    def policy_before(self, round: int, env: Any) -> TextAlgorithm:
        """The agent that a round begins with: that of the round before, which keeps its reference, or a new one."""
        settings = self.settings
        if round > 1:
            saved = RunFolder(self.folder.stage(round - 1, POLICY).path).agent
            loaded: TextAlgorithm = self.algorithm.load(saved, env=env, device=settings.device)
            return loaded
        assert settings.model is not None
        return self.algorithm(settings.model, env, self.config, seed=settings.seed, device=settings.device)

    def env(self, mdp: TextMDP) -> Any:
        """Rows of an environment to learn in: a `TextGenVectorEnv`."""
        return TextGenVectorEnv(self.config.num_envs, mdp=mdp)

    def reward_model(self, round: int) -> Scorer:
        """A round's, from its folder."""
        return load_reward(self.folder.stage(round, REWARD_MODEL), self.settings.device)

    # ---------------------------------------------------------------- the record

    def write_config(self) -> None:
        """Write ``config.json``."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
        write_json(self.folder.config, {**self.options(), "versions": versions})

    def options(self) -> dict[str, dict[str, Any]]:
        """All options by part; a gold that is an object by the name of its code."""
        settings = {field.name: getattr(self.settings, field.name) for field in dataclasses.fields(self.settings)}
        gold = settings["gold"]
        if not (gold is None or isinstance(gold, str)):
            code = gold if hasattr(gold, "__qualname__") else type(gold)
            settings["gold"] = f"{code.__module__}:{code.__qualname__}"
        return {
            "settings": settings,
            "fit": dataclasses.asdict(self.fit),
            "algorithm": dataclasses.asdict(self.config),
        }

    def check_same(self) -> None:
        """Refuse to go on with other options than those begun with."""
        before, now = self.folder.read_config(), json.loads(json.dumps(self.options(), default=repr))
        for part, options in now.items():
            for name, value in options.items():
                if name not in CHANGEABLE_ON_RESUME and before[part].get(name) != value:
                    raise ValueError(
                        f"'{self.folder.path}' was begun with {name}={before[part].get(name)!r}, not {value!r}: "
                        "what it holds would not fit; give another --output"
                    )

    def result(self, status: Status, instructions: str = "") -> RLHFResult:
        """Write ``result.json`` and the report from the stages that are done."""
        start = self.folder.start.found
        seconds: dict[str, Any] = {} if start is None else {"start": start.pop("seconds")}
        rounds = []
        for round in range(1, self.settings.rounds + 1):
            found = {name: self.folder.stage(round, name).found for name in STAGES}
            for name, one in found.items():
                if one is not None:
                    seconds[f"round-{round}/{name}"] = one.pop("seconds")
            if None not in found.values():
                rounds.append(_summary(round, found, f"best_{self.settings.measure}"))
        if self.folder.path.is_dir() and start is not None:
            write_json(self.folder.result, {"status": status, "start": start, "rounds": rounds, "seconds": seconds})
            write_report(self.folder, status, instructions)
        return RLHFResult(self.folder.path, status, start or {}, rounds, instructions)


def _summary(round: int, found: Mapping[str, Any], ceiling: str) -> Found:
    """A round's figures in one mapping; the reward model's have its ceiling too, by that name."""
    evaluation, raw = dict(found[EVALUATION]), found[FEEDBACK]["raw_agreement"]
    best = evaluation.pop(ceiling, None if raw is None else accuracy_from_agreement(raw))
    return {
        "round": round,
        "feedback": {**found[SAMPLES], **found[FEEDBACK]},
        "reward_model": {**found[REWARD_MODEL], ceiling: best},
        "policy": found[POLICY],
        "evaluation": evaluation,
    }


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What a stage found, for the terminal."""
    for name, value in found.items():
        if isinstance(value, dict) and "mean" in value:
            value = f"{value['mean']:.3f}" + (
                " [{:.3f}, {:.3f}]".format(*value["interval"]) if value["interval"] else ""
            )
        elif isinstance(value, float):
            value = f"{value:.3f}"
        elif value is None or isinstance(value, (list, tuple)):
            continue
        yield f"{name.replace('_', ' '):<18} {value}"


def _quiet(stage: str, detail: str) -> None:
    pass
