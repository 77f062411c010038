"""``textgen rlhf``: reinforcement learning from human feedback, from prompts to report."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from agents.algorithms import find_algorithm
from agents.config import make_config
from agents.options import add_options
from agents.rlhf.folder import LoopFolder
from agents.rlhf.loop import CHANGEABLE_ON_RESUME, RLHFResult, rlhf
from agents.rlhf.report import rounds_table
from agents.rlhf.settings import RLHFSettings
from reward_models.preference import FitConfig

_RLHF = """Reinforcement learning from human feedback. Each round: the policy writes pairs of completions, annotators
say which is better (or rate each), a reward model learns from all judgements so far, and the policy learns from the
reward model, kept near the model it began as by a charge for the KL. Annotators are people (the command stops, says how
to serve them the texts, and goes on when asked again), or simulated ones with a gold reward that the learner never
sees, or none, where a file has the judgements already. The loop's folder gets the report, curves, texts, judgements,
and every round's reward model and policy. Whatever interrupts it, --resume goes on after the last finished stage."""

_EPILOG = """examples:
  annotators simulated by a reward, which is then known but to them and the report:
    textgen rlhf --model ./my-model --prompts openings.jsonl --gold sentiment_lexicon --noise 0.2 --output my-loop
  people:
    textgen rlhf --model ./my-model --prompts openings.jsonl --annotators people --output my-loop
    textgen feedback serve my-loop/round-1/2-feedback/feedback.db
    textgen rlhf --resume my-loop
  ratings that exist already, {"prompt": "...", "completion": "...", "rating": 3.5} a line:
    textgen rlhf --model ./my-model --prompts rated.jsonl --judgements rated.jsonl --feedback-kind rating \\
      --annotators none --rounds 1 --output my-loop
  one more round:
    textgen rlhf --resume my-loop --rounds 3
"""

_FIT = "fit-"
WAITING = 3
"""The exit code while people are to judge."""

_GROUPS = {
    "prompts": "env prompts prompt_field reference_field template split_fractions max_prompt_tokens max_new_tokens",
    "feedback": "rounds comparisons feedback_kind judgements annotators overlap guidelines gold noise length_bias "
    "position_bias laziness",
    "reward model": "reward_model held_out_share members pessimism",
}
"""Heading -> fields of `RLHFSettings`; those left are about the run."""


def add_rlhf_command(commands: Any, algorithm: str) -> None:
    """Add ``rlhf`` to the parser's sub-commands, with the options of an algorithm."""
    parser = commands.add_parser(
        "rlhf",
        help="learn from feedback: samples, judgements, reward model, policy, in rounds",
        usage="textgen rlhf (--model MODEL (--env ID | --prompts FILE) | --resume FOLDER) [OPTION ...]",
        description=_RLHF,
        epilog=_EPILOG,
    )
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the loop in this folder")
    parser.add_argument("--enough", action="store_true", help="go on with the judgements that people have given")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    fields = {field.name for field in dataclasses.fields(RLHFSettings)}
    for title, names in _GROUPS.items():
        add_options(parser, title, RLHFSettings, skip=fields - set(names.split()))
    add_options(parser, "run", RLHFSettings, skip=" ".join(_GROUPS.values()).split())
    add_options(parser, "fit of the reward model", FitConfig, prefix=_FIT)
    add_options(parser, f"options of {algorithm}", find_algorithm(algorithm)[1])
    parser.set_defaults(command=_rlhf, parser=parser)


def _rlhf(arguments: argparse.Namespace) -> int:
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "parser")}
    quiet, resume, enough = given.pop("quiet"), given.pop("resume"), given.pop("enough")
    settings, fit, algorithm = _parts(given) if resume is None else _resumed(resume, given)
    made = RLHFSettings(**settings)
    transformers_logging.set_verbosity_error()  # that a reward model's head is fresh is no news
    result = rlhf(
        made,
        make_config(find_algorithm(made.algo)[1], None, algorithm),  # type: ignore[arg-type]
        FitConfig(**fit),
        resume=resume is not None,
        enough=enough,
        verbose=0 if quiet else 1,
        on_stage=None if quiet else lambda stage, detail: print(f"{stage:<12} {detail}", flush=True),
    )
    return _tell(result)


def _parts(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Options of the loop, of the fit and of the algorithm."""
    own = {field.name for field in dataclasses.fields(RLHFSettings)}
    prefix = _FIT.replace("-", "_")
    settings = {name: value for name, value in given.items() if name in own}
    fit = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    rest = {name: value for name, value in given.items() if name not in own and not name.startswith(prefix)}
    return settings, fit, rest


def _resumed(path: str, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    fixed = sorted(set(given) - set(CHANGEABLE_ON_RESUME))
    if fixed or "output" in given:
        raise ValueError(
            f"--resume keeps the loop's own settings, so --{(fixed or ['output'])[0].replace('_', '-')} cannot be "
            "given; --rounds, --device, --threads, --enough and --quiet can"
        )
    parts = LoopFolder(Path(path)).read_config()
    return {**parts["settings"], **given, "output": path}, parts["fit"], parts["algorithm"]


def _tell(result: RLHFResult) -> int:
    if result.rounds:
        table = rounds_table(result.start, result.rounds)
        rows = [[str(cell) for cell in row] for row in (table.header, *table.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print()
        for first, *cells in rows:
            print("  ".join([first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))
        print(f"\nreport: {result.folder / 'report.html'}\npolicy: {result.model}")
    if result.status == "waiting":
        print(result.instructions)
        return WAITING
    if result.status == "interrupted":
        print(f"interrupted; go on with: {result.instructions}")
        return 130
    return 0
