"""``textgen pretrain``: a small language model on the user's own texts, from the command line."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch

from agents.generation import generate
from agents.options import add_options
from agents.pretraining.documents import read_documents
from agents.pretraining.preference import GOOD_TOKEN, ObjectiveConfig
from agents.pretraining.run import Pretrained, positions_of, pretrain, read_record
from agents.pretraining.settings import PretrainConfig, PretrainSettings

_PRETRAIN = """Pretrain a causal language model on texts: plain text files, .jsonl files with a field of text, folders
of either, or a Hugging Face dataset's name or folder. Some documents are held out, by their content, and perplexity on
them is shown as it falls. The output is a folder that AutoModelForCausalLM and AutoTokenizer load, and that every
--model of 'textgen' takes. Ctrl-C saves what there is; --resume goes on, to the same result."""

_EPILOG = """examples:
  textgen pretrain shakespeare.txt --output my-lm
  textgen pretrain stories.jsonl --text-field story --model ./my-lm --output my-story-lm
  textgen pretrain --resume my-lm
  good texts, by any reward ('textgen list'), told from bad ones by a control token; then good ones on demand:
    textgen pretrain stories.jsonl --output kind-lm --objective conditional --reward sentiment_lexicon --threshold 0
    textgen generate kind-lm '<|good|>'
"""

_SAMPLE_TOKENS = 64


def add_pretrain_command(commands: Any) -> None:
    """Add ``pretrain`` to the sub-commands."""
    parser = commands.add_parser(
        "pretrain",
        help="pretrain a language model on your texts",
        usage="textgen pretrain (TEXT ... --output FOLDER | --resume FOLDER) [OPTION ...]",
        description=_PRETRAIN,
        epilog=_EPILOG,
    )
    absent = argparse.SUPPRESS
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="files, folders, or a dataset's name")
    parser.add_argument("--resume", metavar="FOLDER", default=absent, help="go on with what is in this folder")
    parser.add_argument(
        "--text-field", metavar="FIELD", default=absent, help="field of a record that is the text (default: text)"
    )
    parser.add_argument(
        "--separator",
        metavar="TEXT",
        default=absent,
        help="what stands between the documents of a text file, \\n for a line's end; "
        "none: each file is one (default: \\n\\n)",
    )
    parser.add_argument("--threads", type=int, metavar="N", default=absent, help="CPU threads (default: 1)")
    parser.add_argument("--quiet", action="store_true", default=absent, help="no progress, only the result")
    add_options(parser, "model and blocks", PretrainSettings)
    add_options(parser, "fit", PretrainConfig)
    add_options(parser, "objective", ObjectiveConfig)
    parser.set_defaults(command=_pretrain, parser=parser)


def _pretrain(arguments: argparse.Namespace) -> int:
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "parser")}
    torch.set_num_threads(given.pop("threads", 1))
    quiet, resume = given.pop("quiet", False), given.pop("resume", None)
    if resume is None:
        about = _about(given)
        parts = [_chosen(kind, given) for kind in (PretrainSettings, PretrainConfig, ObjectiveConfig)]
    else:
        about, parts = _resumed(resume, given)
    documents = read_documents(about["texts"], text_field=about["text_field"], separator=about["separator"])
    found = pretrain(
        documents,
        *parts,
        resume=resume is not None,
        about=about,
        on_stage=None if quiet else lambda stage, line: print(f"{stage:<12} {line}", flush=True),
        on_step=None if quiet else _progress,
    )
    if not found.finished:
        print(f"interrupted; go on with: textgen pretrain --resume {found.folder}")
        return 130
    print(f"sample       {sample(found)!r}\nmodel: {found.folder}")
    if found.prompt:
        print(f"good texts: textgen generate {found.folder} '{GOOD_TOKEN}'")
    return 0


def _about(given: dict[str, Any]) -> dict[str, Any]:
    """Where the texts come from, taken out of what was given; and a check that something was."""
    about = {
        "texts": given.pop("texts"),
        "text_field": given.pop("text_field", "text"),
        "separator": given.pop("separator", "\\n\\n"),
    }
    if not about["texts"]:
        raise ValueError("say which texts: textgen pretrain TEXT ... --output FOLDER")
    if given.get("output") is None:
        raise ValueError("say --output: the folder to write")
    separator = about["separator"]
    about["separator"] = None if separator == "none" else separator.replace("\\n", "\n").replace("\\t", "\t")
    return about


def _resumed(folder: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """What the folder was made with."""
    if not given["texts"]:
        del given["texts"]
    device = given.pop("device", None)
    fixed = sorted(given)
    if fixed:
        raise ValueError(
            f"--resume keeps what the folder was made with, so {fixed[0].replace('_', '-')} cannot be given; "
            "--device, --threads and --quiet can"
        )
    record = read_record(folder)
    about = record["about"]
    if "texts" not in about:
        raise ValueError(f"'{folder}' was pretrained from Python: go on there, with resume=True")
    settings = PretrainSettings(**{**record["settings"], "output": folder})
    settings.device = device or settings.device
    return about, [settings, PretrainConfig(**record["fit"]), ObjectiveConfig(**record["objective"])]


def _chosen(kind: type[Any], given: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if name in names})


def _progress(step: int, steps: int, loss: float) -> None:
    if step % max(1, steps // 20) == 0:
        print(f"step         {step:,}/{steps:,}, loss {loss:.3f}", flush=True)


def sample(found: Pretrained, seed: int = 0) -> str:
    """A text that the model begins by itself, a good one where it knows what that is."""
    positions = positions_of(found.policy.model)
    room = _SAMPLE_TOKENS if positions is None else min(_SAMPLE_TOKENS, positions - 2)
    return generate(found.policy, found.tokenizer, [found.prompt], max_new_tokens=room, seed=seed)[0]
