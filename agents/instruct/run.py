"""Instruction tuning: from instructions and answers to a model that follows them, round by round.

A round learns some files of records, from the model that the round before it left. After each one the model answers the
same held-out instructions of every file, so that the rounds can be read side by side: what a round taught, and what it
made the model forget.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.utils import get_device

from agents.document import Table
from agents.instruct.data import (
    Lengths,
    Limits,
    as_task,
    fitting,
    lengths_of,
    limits_for,
    make_template,
    read_instructions,
    rules,
    split_instructions,
)
from agents.instruct.fit import MEASURES, InstructConfig, clear, evaluate_answers, fit
from agents.instruct.settings import InstructSettings
from agents.model_source import load_model
from agents.models import small_gpt2
from agents.policy import TextPolicy
from agents.run_folder import check_free, write_json
from textgen_env import TextTask, TextTokenizer
from textgen_env.lookup import did_you_mean
from textgen_env.tokenizer import train_tokenizer

REPORT = "instruct.json"
_POSITIONS = 512
"""Of a model from scratch, at least: it may go on with longer texts than it began with."""
_INHERITED = ("template", "split_fractions")


@dataclass
class Round:
    """A round and what it came to, as `REPORT` holds it; the first, without files, is the model that all began with."""

    data: list[str]
    """The files it added."""
    records: int = 0
    """Training records it learned."""
    steps: int = 0
    best_step: int = 0
    validation: list[dict[str, float]] = field(default_factory=list)
    held_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File -> what `evaluate_answers` found after the round."""


@dataclass(frozen=True)
class InstructResult:
    """What `instruct` leaves."""

    folder: Path
    """A Hugging Face folder, with `REPORT` in it."""
    rounds: tuple[Round, ...]
    policy: TextPolicy
    tokenizer: TextTokenizer
    interrupted: bool
    """Whether a signal ended it; `instruct` with ``resume=True`` goes on."""


def instruct(
    settings: InstructSettings,
    config: InstructConfig | None = None,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
    on_step: Callable[[int, int, float], None] | None = None,
) -> InstructResult:
    """Teach a model to answer instructions, and measure it on held-out ones before and after every round.

    Args:
        settings: data, model, template, limits.
        config: the options of the fit.
        resume: go on in ``settings.output`` where a run was interrupted; what comes out is what would have without.
        say: called with a line about each stage.
        on_step: called with (steps done, steps in all, loss in nats a token).

    Raises:
        FileExistsError: the output folder holds something, and this is no resumed run.
        ValueError: bad data or options; the message names them.
    """
    torch.set_num_threads(settings.threads)
    return _Job(settings, config or InstructConfig(), resume, say, on_step).run()


def read_report(folder: str | Path) -> dict[str, Any]:
    """What `instruct` wrote about its run.

    Raises:
        FileNotFoundError: there is nothing of the kind in the folder.
    """
    path = Path(folder) / REPORT
    if not path.is_file():
        near = [str(found.parent) for found in Path(folder).parent.glob(f"*/{REPORT}")]
        raise FileNotFoundError(f"'{folder}' is no result of instruction tuning; {did_you_mean(str(folder), near)}")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


class _Job:
    """The rounds of a run, and what they hand on."""

    def __init__(
        self,
        settings: InstructSettings,
        config: InstructConfig,
        resume: bool,
        say: Callable[[str], None],
        on_step: Callable[[int, int, float], None] | None,
    ) -> None:
        self.settings, self.config, self.say, self.on_step = settings, config, say, on_step
        self.folder = Path(str(settings.output))
        self.rounds = [Round([])]
        self.limits: Limits | None = None
        before: dict[str, Any] | None = None
        if resume:
            before = read_report(self.folder)
            if before["status"] == "finished":
                raise ValueError(f"the run in '{self.folder}' is finished: go on from it with --from {self.folder}")
        else:
            check_free(self.folder)
        if not resume and settings.previous is not None:
            before = read_report(settings.previous)
            settings.refuse_changed(_INHERITED, f"'{settings.previous}' has its own: leave it out")
            inherited = {name: before["settings"][name] for name in _INHERITED}
            self.settings = dataclasses.replace(settings, **inherited)
        if before is not None:
            self.rounds = [Round(**found) for found in before["rounds"]]
            self.limits = Limits(**before["limits"])
        self.plan: list[list[str]] = before["plan"] if before is not None else []
        """The files that each round adds."""
        self.inherited: int = before["inherited"] if before is not None and resume else len(self.rounds)
        """Rounds, the start among them, that were done before this run."""
        if not resume:
            self._check_new([path for data in self.plan for path in data])
            new = [[path] for path in settings.data] if settings.by_round else [list(settings.data)]
            self.plan = [*self.plan, *new]
        self.records = {path: read_instructions(path) for data in self.plan for path in data}
        self.digests = {path: _digest(records) for path, records in self.records.items()}
        for path, digest in (before["data"] if before is not None else {}).items():
            if self.digests[path] != digest:
                raise ValueError(f"'{path}' has changed since it was learned: bring it back, or start anew elsewhere")

    def _check_new(self, learned: Sequence[str]) -> None:
        for path in self.settings.data:
            if path in learned:
                raise ValueError(f"'{path}' was learned in an earlier round: name the new files only")

    def run(self) -> InstructResult:
        """What is left of the plan."""
        policy, task = self.start()
        held_out = {prompt.metadata["source"] for prompt in task.splits.get("test", ())}
        if self.settings.split_fractions[2] and not held_out:
            raise ValueError(
                "no instruction is held out to be answered: give more, raise the third of --split-fractions, or set it "
                "to 0 to measure nothing"
            )
        if held_out - self.rounds[-1].held_out.keys():  # the start, or an earlier result that has not seen these files
            self.rounds[-1].held_out = {**self.evaluate(policy, task), **self.rounds[-1].held_out}
            self.write("running")
        while len(self.rounds) <= len(self.plan):
            if not self.learn(policy, task):
                return self.result(policy, interrupted=True)
        self.write("finished")
        return self.result(policy, interrupted=False)

    def start(self) -> tuple[TextPolicy, TextTask]:
        """The model that the next round begins with, and all records as one task."""
        settings = self.settings
        done_here = len(self.rounds) > self.inherited
        source = str(self.folder) if done_here else settings.previous or settings.model
        if source is None:
            self.template = make_template(settings.template, None)
            texts = self.task_of(self.records).texts("train")
            self.tokenizer = TextTokenizer(train_tokenizer(texts, settings.vocab_size))
        else:
            self.tokenizer = TextTokenizer(source)
            self.template = make_template(settings.template, self.tokenizer)
        model = None if source is None else load_model(source, settings.seed)
        task = self.task_of(self.records)
        lengths = lengths_of(task, self.tokenizer)
        room = None if model is None else model.config.get_text_config().max_position_embeddings
        known = self.limits or Limits(0, 0)  # of an earlier result
        self.limits = limits_for(
            lengths,
            room,
            settings.max_prompt_tokens or known.prompt or None,
            settings.max_new_tokens or known.answer or None,
        )
        self.check_lengths(lengths, self.limits)
        if model is None:
            shape = {"layers": settings.layers, "width": settings.width, "heads": settings.heads}
            positions = max(_POSITIONS, self.limits.prompt + self.limits.answer)
            model = load_model(small_gpt2(self.tokenizer, positions=positions, **shape), settings.seed)
        device = get_device(settings.device)
        policy = TextPolicy(model, self.tokenizer.vocab_size, precision=settings.precision).to(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.hf.save_pretrained(str(self.folder))
        self.write("running")
        task = self.within_limits(task)
        sizes = ", ".join(f"{split} {len(prompts):,}" for split, prompts in task.splits.items())
        self.say(f"data         {sum(map(len, self.records.values())):,} records; prompts by split: {sizes}")
        self.say(f"model        {model.num_parameters():,} parameters, on {device}")
        return policy, task

    def task_of(self, files: Iterable[str]) -> TextTask:
        """The records of some files, whatever their lengths."""
        records = [record for path in files for record in self.records[path]]
        return as_task(split_instructions(records, self.settings.split_fractions), self.template.render)

    def check_lengths(self, lengths: Lengths, limits: Limits) -> None:
        """Say how many records are too long, or refuse them."""
        beyond = lengths.beyond(limits)
        if not beyond:
            return
        found = (
            f"{beyond:,} of {len(lengths.prompts):,} records are longer than {limits.prompt} tokens of prompt or "
            f"{limits.answer} of answer (the longest: {max(lengths.prompts)} and {max(lengths.answers)})"
        )
        if self.settings.too_long == "refuse":
            raise ValueError(
                f"{found}: raise --max-prompt-tokens and --max-new-tokens as far as the model has positions, or say "
                "--too-long cut (prompts lose their beginning, answers their end and EOS) or --too-long drop"
            )
        self.say(f"data         {found}: they are {'cut' if self.settings.too_long == 'cut' else 'dropped'}")

    def within_limits(self, task: TextTask) -> TextTask:
        """The task without what is to be dropped."""
        assert self.limits is not None
        return fitting(task, self.tokenizer, self.limits) if self.settings.too_long == "drop" else task

    def learn(self, policy: TextPolicy, everything: TextTask) -> bool:
        """One round; False when a signal ended it."""
        number = len(self.rounds)
        assert self.limits is not None
        new = self.plan[number - 1]
        files = [path for data in self.plan[:number] for path in data] if self.settings.replay else new
        listed = ", ".join(files)
        task = self.within_limits(self.task_of(files))
        records = sum(len(prompt.references) for prompt in task.prompts("train"))
        validated = bool(task.splits.get("validation"))
        if self.config.patience is not None and not validated:
            raise ValueError(
                f"no instruction of {listed} is held out for validation, which early stopping goes by: give more, "
                "raise the second of --split-fractions, or say --patience none"
            )
        self.say(f"round {number}      {records:,} records of {listed}")
        done = fit(
            policy,
            rules(task, self.tokenizer, self.limits),
            rules(task, self.tokenizer, self.limits, "validation") if validated else None,
            self.config,
            folder=self.folder,
            fingerprint=_digest([number, self.digests, self.limits, self.config, self.settings.seed]),
            seed=self.settings.seed + number,
            on_step=self.on_step,
            on_validation=lambda row: self.say(
                f"             step {row['step']:.0f}, loss {row['loss']:.3f}"
                + (f", held out {row['validation_loss']:.3f}" if validated else "")
            ),
        )
        if not done.finished:
            return False
        self.save(policy)
        found = self.evaluate(policy, everything)
        self.rounds.append(Round(new, records, done.steps, done.best_step, done.history, found))
        self.write("running")
        clear(self.folder)  # last: a run that is killed before this finds the end of the round again
        return True

    def evaluate(self, policy: TextPolicy, task: TextTask) -> dict[str, dict[str, Any]]:
        """Answers to every file's held-out instructions."""
        if not task.splits.get("test"):
            return {}
        assert self.limits is not None
        mdp = rules(task, self.tokenizer, self.limits, "test")
        found = evaluate_answers(policy, mdp, num_prompts=self.settings.eval_prompts, seed=self.settings.seed)
        for source, figures in found.items():
            means = ", ".join(f"{name} {figures[name]['mean']:.3f}" for name in MEASURES)
            self.say(f"held out     {source}, {figures['prompts']} prompts: {means}")
        return found

    def save(self, policy: TextPolicy) -> None:
        """Put the model into the folder, file by file, each whole at every moment."""
        fresh = self.folder / "model.tmp"
        policy.save_pretrained(fresh)
        for path in fresh.iterdir():
            os.replace(path, self.folder / path.name)
        fresh.rmdir()

    def write(self, status: str) -> None:
        """Put on record what there is."""
        assert self.limits is not None
        report = {
            "status": status,
            "settings": dataclasses.asdict(self.settings),
            "fit": dataclasses.asdict(self.config),
            "limits": dataclasses.asdict(self.limits),
            "data": self.digests,
            "plan": self.plan,
            "inherited": self.inherited,
            "rounds": [dataclasses.asdict(done) for done in self.rounds],
        }
        write_json(self.folder / REPORT, report)

    def result(self, policy: TextPolicy, *, interrupted: bool) -> InstructResult:
        """What there is."""
        return InstructResult(self.folder, tuple(self.rounds), policy, self.tokenizer, interrupted)


def rounds_table(rounds: Sequence[Round]) -> Table:
    """A row for every measure of a file's held-out instructions, a column a round."""
    sources = dict.fromkeys(source for done in rounds for source in done.held_out)
    rows = []
    for source in sources:
        for name in MEASURES:
            cells = [done.held_out[source][name]["mean"] if source in done.held_out else None for done in rounds]
            rows.append([f"{source}, {name}", *["–" if cell is None else f"{cell:.3f}" for cell in cells]])
    return Table(["", "start", *[f"round {number}" for number in range(1, len(rounds))]], rows)


def _digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
