"""``textgen instruct``: teach a model to answer instructions."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from tqdm.auto import tqdm

from agents.document import aligned
from agents.instruct.fit import InstructConfig
from agents.instruct.run import instruct, read_report, rounds_table
from agents.instruct.settings import InstructSettings
from agents.options import add_options

_INSTRUCT = """Teach a model to answer instructions: records {"instruction": "...", "input": "..." (perhaps), "output":
"..."}, one JSON object a line. Only the answers are learned, and all records of an instruction stay on one side of the
split. The output is a Hugging Face folder, which 'textgen train --model' takes; instruct.json in it has the options,
the validation losses and, side by side, what every round scored on held-out instructions. Ctrl-C saves what there is;
--resume goes on."""

_EPILOG = """examples:
  textgen instruct data.jsonl --model gpt2 --output tuned
  round by round, each from the model that the one before left:
    textgen instruct first.jsonl second.jsonl --by-round --model gpt2 --output tuned
  more data later:
    textgen instruct third.jsonl --from tuned --output tuned-more
  a template of your own:
    textgen instruct data.jsonl --model gpt2 --output tuned --template $'{instruction}\\n\\n{input}\\n\\nAnswer:'
  going on with an interrupted run:
    textgen instruct --resume tuned
"""
_CHANGEABLE_ON_RESUME = {"device", "threads"}


def add_instruct_command(commands: Any) -> None:
    """Add ``instruct`` to the parser's sub-commands."""
    parser = commands.add_parser(
        "instruct",
        help="teach a model to answer instructions",
        usage="textgen instruct (DATA ... --output FOLDER | --resume FOLDER) [OPTION ...]",
        description=_INSTRUCT,
        epilog=_EPILOG,
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="the records: .jsonl or .csv files")
    parser.add_argument(
        "--from",
        dest="previous",
        default=argparse.SUPPRESS,
        metavar="FOLDER",
        help="go on from an earlier result: its model, its rounds, its data",
    )
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the interrupted run in this folder")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    add_options(parser, "instruction tuning", InstructSettings, skip={"data", "previous"})
    add_options(parser, "fit", InstructConfig)
    parser.set_defaults(command=_instruct, parser=parser)


def _instruct(arguments: argparse.Namespace) -> int:
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "parser")}
    quiet, resume, data = given.pop("quiet"), given.pop("resume"), given.pop("data")
    names = {field.name for field in dataclasses.fields(InstructSettings)}
    if resume is not None:
        fixed = [*data, *sorted(set(given) - _CHANGEABLE_ON_RESUME)]
        if fixed:
            raise ValueError(f"--resume keeps the run's own settings: leave out {fixed[0].replace('_', '-')}")
        report = read_report(resume)
        settings = InstructSettings(**{**report["settings"], **given, "output": resume})
        config = InstructConfig(**report["fit"])
    else:
        settings = InstructSettings(tuple(data), **{key: value for key, value in given.items() if key in names})
        config = InstructConfig(**{key: value for key, value in given.items() if key not in names})
    with tqdm(desc="fit", unit="step", dynamic_ncols=True, disable=quiet) as bar:

        def on_step(step: int, steps: int, loss: float) -> None:
            bar.total = steps
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        result = instruct(
            settings, config, resume=resume is not None, say=_silent if quiet else bar.write, on_step=on_step
        )
    table = rounds_table(result.rounds)
    if table.rows:
        print(aligned(table))
    if result.interrupted:
        print(f"interrupted; go on with: textgen instruct --resume {result.folder}")
        return 130
    print(f"model: {result.folder}")
    return 0


def _silent(line: str) -> None:
    pass
