"""The command ``textgen``: train, evaluate, credit, generate, reward, feedback, rlhf, report, attention, list."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from transformers.utils import logging as transformers_logging

from agents.algorithms import ALGORITHMS, find_algorithm
from agents.alignment.cli import add_report_command
from agents.attention.cli import add_attention_command
from agents.base import TextAlgorithm
from agents.config import AlgorithmConfig, make_config
from agents.credit import credit
from agents.credit_page import credit_lines, write_credit_page
from agents.distributed import FailedElsewhere, WorldError, asked_size, join, leave
from agents.document import Texts
from agents.evaluation import evaluate, on_split
from agents.feedback_cli import add_feedback_commands
from agents.instruct.cli import add_instruct_command
from agents.invariants import InvariantError
from agents.multitask.cli import add_multitask_command
from agents.options import OptionParser, add_options
from agents.pipeline import run
from agents.pretraining.cli import add_pretrain_command
from agents.report import measures_table, sample_texts
from agents.reward_cli import add_reward_commands
from agents.rlhf.cli import add_rlhf_command
from agents.run_folder import find_run, write_json
from agents.saved import load_saved, open_saved
from agents.settings import ENVIRONMENT_FIELDS, RunSettings, environment_ids, make_mdp
from textgen_env import reward_names

_EPILOG = """examples:
  textgen list
  textgen train --env textgen_env/NewsSummary-v0 --algo ppo
  textgen train --data news.jsonl --prompt-field article --reference-field headline --reward rouge_l --model gpt2
  textgen evaluate runs/NewsSummary-ppo-20250101-120000
  textgen credit runs/NewsSummary-ppo-20250101-120000
  textgen generate runs/NewsSummary-ppo-20250101-120000 "Once upon a time"
"""

_TRAIN = """Train an agent: prompts, then a supervised warm start, an evaluation on held-out prompts, reinforcement
learning, and the same evaluation again. The run's folder gets the report, curves, texts, metrics, the
agent and the model. Ctrl-C saves what there is; --resume goes on."""

_TRAIN_EPILOG = """examples:
  a built-in environment, with a small model from scratch:
    textgen train --env textgen_env/NewsSummary-v0 --algo ppo
  your own data, your own model and your own reward, the function 'brevity' in rewards.py of this folder:
    textgen train --data news.jsonl --prompt-field article --reference-field headline \\
                  --model ./my-model --reward rewards:brevity --total-tokens 100_000
  going on with an interrupted run:
    textgen train --resume runs/NewsSummary-ppo-20250101-120000
"""

_EVALUATE = """Score a run's agent, or any causal language model, on held-out prompts: sampled and greedy, with 95 %
intervals (bootstrap over prompts). A run brings its own environment; --env or --data asks another one."""

_CREDIT = """Show which tokens earned the reward: some held-out prompts answered by a run's agent, every token with its
advantage, value, reward and KL from the reference. Prints the tokens with their advantages, and writes a page."""

_GENERATE = """Complete prompts, given as arguments or one a line on standard input."""

_MODEL_FIELDS = ("model", "layers", "width", "heads", "vocab_size", "lora_rank")
_CHANGEABLE_ON_RESUME = {"total_tokens", "device", "threads"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit code: 0; 2 for bad input, with a message; 1 for a run that had to stop; 130 after Ctrl-C.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # 'module:attr' finds the user's own files, as `python -m` would
    transformers_logging.disable_progress_bar()  # of reading and writing weights; ours are about the run
    try:
        another = int(os.environ.get("RANK", 0)) > 0  # rank 0 says what is wrong with the options
        with contextlib.redirect_stderr(io.StringIO()) if another else contextlib.nullcontext():
            arguments = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        if arguments.command is not _train and asked_size(os.environ) > 1:
            raise WorldError("only 'textgen train' runs in several processes: start the others without a launcher")
        code: int = arguments.command(arguments)
        leave()
        return code
    except FailedElsewhere:  # rank 0 says at what
        return 2
    except SystemExit as stop:  # argparse's way to end, after --help or an error it has printed
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        print("textgen: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough; Python must not flush into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InvariantError, FloatingPointError) as error:
        print(f"textgen: {_rank()}the run stopped: {error}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError, gym.error.Error) as error:
        print(f"textgen: {_rank()}error: {error}", file=sys.stderr)
        return 2


def _rank() -> str:
    """Which of several processes has something to say."""
    return f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""


# ---------------------------------------------------------------- the parser


def _parser(argv: Sequence[str]) -> OptionParser:
    parser = OptionParser(
        prog="textgen", description="Reinforcement learning on text with transformer policies.", epilog=_EPILOG
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=OptionParser)

    train = commands.add_parser(
        "train",
        help="train an agent and write a report",
        usage="textgen train (--env ID | --data FILE | --resume FOLDER) [OPTION ...]",
        description=_TRAIN,
        epilog=_TRAIN_EPILOG,
    )
    train.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    train.add_argument("--quiet", action="store_true", help="no progress, only the result")
    train.add_argument("--verbose", action="store_true", help="also a table of metrics after every update")
    run_fields = {field.name for field in dataclasses.fields(RunSettings)} - {*_MODEL_FIELDS, *ENVIRONMENT_FIELDS}
    add_options(train, "environment", RunSettings, skip={*_MODEL_FIELDS, *run_fields})
    add_options(train, "model", RunSettings, skip={*ENVIRONMENT_FIELDS, *run_fields})
    add_options(train, "run", RunSettings, skip={*ENVIRONMENT_FIELDS, *_MODEL_FIELDS})
    algorithm = _algorithm_in(argv)
    add_options(train, f"options of {algorithm}", find_algorithm(algorithm)[1])
    train.set_defaults(command=_train, parser=train)

    score = commands.add_parser("evaluate", help="score a run or a model", description=_EVALUATE)
    score.add_argument("source", metavar="RUN_OR_MODEL", help="a run's folder, a model's folder or a hub name")
    score.add_argument("--split", default="test", help="validation, test or train (default: test)")
    score.add_argument("--prompts", type=int, default=200, metavar="N", help="at most so many (default: 200)")
    score.add_argument(
        "--samples-per-prompt", type=int, default=1, metavar="N", help="sampled completions a prompt (default: 1)"
    )
    score.add_argument(
        "--best-of", type=int, metavar="N", help="also draw N completions for each one and let the reward choose"
    )
    score.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and sampling (default: 0)")
    score.add_argument("--output", metavar="FILE", help="also write the figures and all texts as JSON")
    add_options(score, "environment", RunSettings, skip={*_MODEL_FIELDS, *run_fields})
    score.set_defaults(command=_evaluate, parser=score)

    show = commands.add_parser("credit", help="show what every token was credited with", description=_CREDIT)
    show.add_argument("source", metavar="RUN", help="a run's folder")
    show.add_argument("--split", default="test", help="validation, test or train (default: test)")
    show.add_argument("--texts", type=int, default=4, metavar="N", help="at most so many (default: 4)")
    show.add_argument("--greedy", action="store_true", help="the most likely token each time, instead of sampling")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and sampling (default: 0)")
    show.add_argument("--output", metavar="FILE", help="the HTML page (default: credit.html in the run's folder)")
    show.set_defaults(command=_credit, parser=show)

    write = commands.add_parser("generate", help="complete prompts", description=_GENERATE)
    write.add_argument("source", metavar="RUN_OR_MODEL", help="a run's folder, a model's folder or a hub name")
    write.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts to complete; without any, standard input")
    write.add_argument("--greedy", action="store_true", help="the most likely token each time, instead of sampling")
    write.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default: 0)")
    write.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="cap on a completion (default: the run's own, or 64; less where the model has no room for it)",
    )
    write.set_defaults(command=_generate, parser=write)

    add_pretrain_command(commands)
    add_instruct_command(commands)
    add_multitask_command(commands, algorithm)
    add_reward_commands(commands)
    add_feedback_commands(commands)
    add_rlhf_command(commands, algorithm)
    add_report_command(commands)
    add_attention_command(commands)

    listing = commands.add_parser("list", help="what there is: environments, rewards, algorithms")
    listing.set_defaults(command=_list, parser=listing)
    return parser


def _algorithm_in(argv: Sequence[str]) -> str:
    """Which algorithm's options the parser is to have: looked up before parsing, since it decides what parses."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--algo")
    early.add_argument("--resume")
    known, _ = early.parse_known_args(list(argv))
    if known.resume:
        with contextlib.suppress(FileNotFoundError):  # not a run: the command that is asked to resume it says so
            return str(find_run(known.resume).read_config()[0]["algo"])
    return known.algo or str(RunSettings.algo)


# ---------------------------------------------------------------- the commands


def _train(arguments: argparse.Namespace) -> int:
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "parser")}
    quiet, verbose, resume = given.pop("quiet"), given.pop("verbose"), given.pop("resume")
    if resume is None:
        known = {field.name for field in dataclasses.fields(RunSettings)}
        settings = RunSettings(**{key: value for key, value in given.items() if key in known})
        options = {key: value for key, value in given.items() if key not in known}
        config = make_config(find_algorithm(settings.algo)[1], None, options)
    else:
        settings, config = _resumed(resume, given)
    quiet = quiet or not join(settings.device).is_main
    result = run(
        settings,
        config,
        resume=resume is not None,
        verbose=0 if quiet else 2 if verbose else 1,
        on_stage=None if quiet else lambda stage, detail: print(f"{stage:<12} {detail}", flush=True),
    )
    if not result.agent.world.is_main:
        return 130 if result.interrupted else 0
    if result.before:
        found = {"before": result.before, "after": result.after}
        print(f"\n{_aligned(measures_table(found))}\n")
        print("\n\n".join(_labelled(block) for block in sample_texts(found) if isinstance(block, Texts)), end="\n\n")
    if result.interrupted:
        print(f"interrupted; go on with: textgen train --resume {result.folder}")
        return 130
    print(f"curves: {result.folder / 'curves.png'}\nreport: {result.folder / 'report.html'}")
    return 0


def _resumed(path: str, given: dict[str, Any]) -> tuple[RunSettings, AlgorithmConfig]:
    fixed = sorted(set(given) - _CHANGEABLE_ON_RESUME)
    if fixed:
        raise ValueError(
            f"--resume keeps the run's own settings, so --{fixed[0].replace('_', '-')} cannot be given; "
            "--total-tokens, --device, --threads, --quiet and --verbose can"
        )
    settings, options = find_run(path).read_config()
    resumed = RunSettings(**{**settings, **given, "output": path})
    return resumed, find_algorithm(resumed.algo)[1](**options)


def _evaluate(arguments: argparse.Namespace) -> int:
    saved = open_saved(arguments.source)
    asked = {name: getattr(arguments, name) for name in ENVIRONMENT_FIELDS if hasattr(arguments, name)}
    settings = saved.settings_for(asked)
    mdp = on_split(make_mdp(settings, tokenizer=saved.tokenizer), arguments.split)
    agent = load_saved(saved, mdp)
    ways: dict[str, dict[str, Any]] = {
        "sampled": {"samples_per_prompt": arguments.samples_per_prompt},
        "greedy": {"greedy": True},
    }
    if arguments.best_of is not None:
        ways[f"best of {arguments.best_of}"] = {
            "samples_per_prompt": arguments.samples_per_prompt,
            "best_of": arguments.best_of,
        }
    found = {
        way: evaluate(agent, mdp, num_prompts=arguments.prompts, seed=arguments.seed, **options)
        for way, options in ways.items()
    }
    print(f"{arguments.source} on {mdp.task.name}, {found['sampled'].num_prompts} prompts of the {mdp.split} split")
    print(_aligned(measures_table({"value": found})))
    if arguments.output:
        texts = len(found["sampled"].samples)
        write_json(Path(arguments.output), {kind: one.to_dict(samples=texts) for kind, one in found.items()})
    return 0


def _credit(arguments: argparse.Namespace) -> int:
    saved = open_saved(arguments.source)
    if saved.run is None:
        raise ValueError(
            f"'{arguments.source}' is a model alone, without the critic and the reference that credit is about: "
            "name the folder of a run ('textgen train' leaves one)"
        )
    mdp = on_split(make_mdp(saved.settings_for({}), tokenizer=saved.tokenizer), arguments.split)
    agent = load_saved(saved, mdp)
    texts = credit(agent, mdp, num_texts=arguments.texts, greedy=arguments.greedy, seed=arguments.seed)
    about = (
        f"{arguments.source} ({type(agent).__name__}) on {mdp.task.name}, {len(texts)} prompts of the {mdp.split} "
        f"split, {'greedy' if arguments.greedy else 'sampled'}, seed {arguments.seed}"
    )
    output = Path(arguments.output) if arguments.output else saved.run.path / "credit.html"
    write_credit_page(output, texts, title="Credit of every token", about=f"{about}.")
    print(about, *(_labelled(credit_lines(text)) for text in texts), f"page: {output}", sep="\n\n")
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    prompts = arguments.prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise ValueError("no prompts: give them as arguments, or one a line on standard input")
    agent = load_saved(open_saved(arguments.source))
    cap = arguments.max_new_tokens or min(agent.max_new_tokens, _room(agent, prompts))
    completions = agent.generate(prompts, max_new_tokens=cap, greedy=arguments.greedy, seed=arguments.seed)
    if len(completions) == 1:
        print(completions[0])
    else:
        for prompt, completion in zip(prompts, completions, strict=True):
            print(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False))
    return 0


def _room(agent: TextAlgorithm, prompts: Sequence[str]) -> int:
    """Tokens that the model can still hold after the longest prompt."""
    assert agent.tokenizer is not None
    longest = max(len(agent.tokenizer.encode_prompt(prompt)) for prompt in prompts)
    positions = getattr(agent.policy.model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return agent.max_new_tokens
    if longest >= positions:
        raise ValueError(f"a prompt has {longest} tokens, the model only {positions} positions: shorten the prompt")
    return int(positions) - longest


def _list(arguments: argparse.Namespace) -> int:
    print("environments")
    for id, kwargs in environment_ids().items():
        print(f"  {id:<32} " + ", ".join(f"{name}={value}" for name, value in kwargs.items()))
    print("\nrewards (or 'module:attr' for your own)")
    for name in reward_names():
        print(f"  {name}")
    print("\nalgorithms")
    for name, (kind, _) in ALGORITHMS.items():
        print(f"  {name:<18} {(kind.__doc__ or '').strip().splitlines()[0]}")
    return 0


def _labelled(texts: Texts) -> str:
    """Each text on a line of its own behind its label, long ones folded."""
    width = max(len(label) for label, _ in texts.items) + 2
    return "\n".join(
        textwrap.fill(text, 110, initial_indent=label.ljust(width), subsequent_indent=" " * width)
        for label, text in texts.items
    )


def _aligned(table: Any) -> str:
    rows = [list(table.header), *map(list, table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *[cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]])
        for row in rows
    )
