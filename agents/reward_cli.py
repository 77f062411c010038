"""``textgen reward``: fit a reward model to human judgements, and score texts with one."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch

from agents.config import option
from agents.options import OptionParser, add_options
from agents.run_folder import check_free, write_json
from reward_models.preference import (
    FitConfig,
    FitResult,
    PreferenceReport,
    RewardEnsemble,
    RewardModel,
    fit_ensemble,
    load,
    read_preferences,
    split_preferences,
)
from reward_models.preference.data import Preference, Rating, text_field
from textgen_env.tasks.records import read_jsonl

_TRAIN = """Fit a reward model to human judgements, one JSON object a line, all of one kind:
  ratings      {"prompt": "...", "completion": "...", "rating": 3.5}
  comparisons  {"prompt": "...", "chosen": "...", "rejected": "..."}, perhaps "margin": 1.0 or "tie": true
  rankings     {"prompt": "...", "ranking": ["best", ..., "worst"]}
The model is any of Hugging Face's, or a small one from scratch. The output is a folder that
AutoModelForSequenceClassification loads; reward.json in it has the options and the validation figures."""

_TRAIN_EPILOG = """examples:
  textgen reward train --data pairs.jsonl --output my-reward
  textgen reward train --data pairs.jsonl --model gpt2 --members 4 --pessimism 1 --output my-reward
  textgen reward score my-reward --data texts.jsonl > scored.jsonl
"""

_SCORE = """Score texts with a reward model: every {"prompt": "...", "completion": "..."} of a JSON-lines file is
written with its score; with an ensemble, also with the standard deviation among its members."""

_SCORE_EPILOG = """example:
  textgen reward score my-reward --data texts.jsonl --output scored.jsonl
"""

_TEXT = ("prompt", "completion")
_CHUNK = 1024
REPORT = "reward.json"


@dataclass
class RewardSettings:
    """The options of ``textgen reward train``, apart from those of the fit."""

    data: str | None = option(None, "the judgements, a .jsonl file")
    validation_data: str | None = option(None, "held-out judgements; by default some prompts of the data")
    validation_share: float = option(
        0.1, "share of the data's prompts to hold out; a prompt's hash decides; 0 holds out none"
    )
    kind: Literal["auto", "rating", "comparison", "ranking"] = option("auto", "what the judgements are")
    output: str | None = option(None, "the folder to write")
    normalise_to: str | None = option(
        None,
        "a .jsonl file of prompt and completion, the reference policy's samples: their scores get mean 0, standard "
        "deviation 1; by default the training texts (ratings: none, scores are in the raters' unit)",
    )

    model: str | None = option(
        None, "a Hugging Face model, by hub name or folder, decoder or encoder; by default a small one from scratch"
    )
    layers: int = option(2, "transformer blocks of the model from scratch")
    width: int = option(64, "its hidden width")
    heads: int = option(4, "its attention heads")
    vocab_size: int = option(1024, "size of the tokenizer trained for it")
    max_length: int | None = option(
        None, "most tokens of prompt and completion; by default what the model has positions for, or 512"
    )

    members: int = option(1, "how many models, an ensemble if more than 1: own seed, head and bootstrap of prompts")
    pessimism: float = option(0.0, "an ensemble's score is its mean less so many standard deviations")
    seed: int = option(0, "seeds weights, order and bootstrap")
    device: str = option("auto", "auto, cpu, cuda, ...")
    threads: int = option(1, "CPU threads")

    def __post_init__(self) -> None:
        for name in ("data", "output"):
            if getattr(self, name) is None:
                raise ValueError(f"say --{name}: {'the judgements' if name == 'data' else 'the folder to write'}")
        if self.members < 1 or self.threads < 1:
            raise ValueError(f"members and threads must be at least 1, got {self.members} and {self.threads}")
        if self.pessimism and self.members == 1:
            raise ValueError("pessimism is about what an ensemble disagrees on: give --members too")
        if self.model is not None:
            for field in dataclasses.fields(self):
                if field.name in ("layers", "width", "heads", "vocab_size") and getattr(self, field.name) != (
                    field.default
                ):
                    raise ValueError(f"model '{self.model}' has its own {field.name}: leave it out")


def add_reward_commands(commands: Any) -> None:
    """Add ``reward train`` and ``reward score`` to the parser's sub-commands."""
    reward = commands.add_parser("reward", help="fit a reward model to human judgements; score texts with it")
    inner = reward.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=OptionParser)

    train = inner.add_parser(
        "train", help="fit a reward model", description=_TRAIN, epilog=_TRAIN_EPILOG, usage=_usage("train")
    )
    train.add_argument("--quiet", action="store_true", help="no progress, only the result")
    add_options(train, "reward model", RewardSettings)
    add_options(train, "fit", FitConfig)
    train.set_defaults(command=_train, parser=train)

    score = inner.add_parser(
        "score", help="score texts", description=_SCORE, epilog=_SCORE_EPILOG, usage=_usage("score")
    )
    score.add_argument("source", metavar="FOLDER", help="a reward model's folder, or an ensemble's")
    score.add_argument("--data", required=True, metavar="FILE", help="the texts, a .jsonl file")
    score.add_argument("--output", metavar="FILE", help="where to write (default: standard output)")
    score.add_argument("--field", default="score", help="the field that gets the score (default: score)")
    score.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts in one forward (default: 32)")
    score.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    score.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    score.set_defaults(command=_score, parser=score)


def _usage(command: str) -> str:
    return {
        "train": "textgen reward train --data FILE --output FOLDER [OPTION ...]",
        "score": "textgen reward score FOLDER --data FILE [OPTION ...]",
    }[command]


# ---------------------------------------------------------------- train


def _train(arguments: argparse.Namespace) -> int:
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "parser", "quiet")}
    names = {field.name for field in dataclasses.fields(RewardSettings)}
    settings = RewardSettings(**{key: value for key, value in given.items() if key in names})
    config = FitConfig(**{key: value for key, value in given.items() if key not in names})
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else (lambda line: print(line, flush=True))
    train_reward(settings, config, say)
    return 0


def train_reward(
    settings: RewardSettings, config: FitConfig, say: Callable[[str], None] = print
) -> RewardModel | RewardEnsemble:
    """Read, fit, normalise, save.

    Raises:
        FileExistsError: the output folder holds something.
        ValueError: bad data or options; the message names them.
    """
    torch.set_num_threads(settings.threads)
    assert settings.data is not None
    assert settings.output is not None
    output = Path(settings.output)
    check_free(output, resumable=False)
    train, validation = _judgements(settings)
    say(f"data         {len(train)} judgements to learn from, {len(validation)} held out")
    members, results = fit_ensemble(
        _maker(settings, train),
        settings.members,
        train,
        validation,
        config,
        bootstrap=settings.members > 1,
        seed=settings.seed,
        on_step=lambda member, step, steps, loss: (
            say(f"fit          model {member + 1}/{settings.members}, step {step}/{steps}, loss {loss:.3f}")
            if step % max(1, steps // 10) == 0
            else None
        ),
    )
    model = members[0] if len(members) == 1 else RewardEnsemble(members, pessimism=settings.pessimism)
    texts = _reference_texts(settings, train)
    if texts:
        model.normalise(*texts)
    model.save(output)
    write_json(output / REPORT, _report(settings, config, results))
    for number, result in enumerate(results, start=1):
        say(f"validation   model {number}: {_described(result.best)}")
    say(f"reward model: {output}")
    return model


def _judgements(settings: RewardSettings) -> tuple[list[Preference], list[Preference]]:
    judgements = read_preferences(str(settings.data), settings.kind)
    if settings.validation_data is not None:
        return judgements, read_preferences(settings.validation_data, settings.kind)
    return split_preferences(judgements, settings.validation_share)


def _maker(settings: RewardSettings, train: list[Preference]) -> Callable[[int], RewardModel]:
    if settings.model is not None:
        source = settings.model
        return lambda seed: RewardModel(source, seed=seed, device=settings.device, max_length=settings.max_length)
    texts = list(dict.fromkeys(text for item in train for text in (item.prompt, *item.completions)))
    return lambda seed: RewardModel.small(
        texts,
        seed=seed,
        device=settings.device,
        max_length=settings.max_length or 512,
        vocab_size=settings.vocab_size,
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
    )


def _reference_texts(settings: RewardSettings, train: list[Preference]) -> tuple[list[str], list[str]] | None:
    """Prompts and completions whose scores get mean 0 and standard deviation 1."""
    if settings.normalise_to is not None:
        records = list(read_jsonl(settings.normalise_to))
        prompts, completions = ([text_field(record, name, where) for where, record in records] for name in _TEXT)
        return prompts, completions
    if isinstance(train[0], Rating):
        return None
    return [item.prompt for item in train for _ in item.completions], [
        text for item in train for text in item.completions
    ]


def _report(settings: RewardSettings, config: FitConfig, results: Iterable[FitResult]) -> dict[str, Any]:
    return {
        "settings": dataclasses.asdict(settings),
        "fit": dataclasses.asdict(config),
        "members": [
            {
                "steps": result.steps,
                "best_step": result.best_step,
                "validation": None if result.best is None else result.best.to_dict(),
                "validation_losses": [[step, report.loss] for step, report in result.validation],
            }
            for result in results
        ],
    }


def _described(report: PreferenceReport | None) -> str:
    if report is None:
        return "none held out"
    parts = [f"loss {report.loss:.3f}"]
    if report.accuracy is not None and report.accuracy_interval is not None:
        low, high = report.accuracy_interval
        parts.append(f"accuracy {report.accuracy:.3f} [{low:.3f}, {high:.3f}] of {report.pairs} pairs")
    if report.calibration is not None:
        parts.append(f"ECE {report.calibration.ece:.3f}")
    if report.spearman is not None:
        parts.append(f"Spearman {report.spearman:.3f}")
    return ", ".join(parts)


# ---------------------------------------------------------------- score


def _score(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(arguments.threads)
    model = load(arguments.source, device=arguments.device, batch_size=arguments.batch_size)
    if arguments.output is not None and Path(arguments.output).exists():
        raise FileExistsError(f"'{arguments.output}' is there already: name another file with --output")
    records = read_jsonl(arguments.data)
    with _written_whole(arguments.output) as file:
        while chunk := list(itertools.islice(records, _CHUNK)):
            for scored in _scored(model, chunk, arguments.field):
                file.write(json.dumps(scored, ensure_ascii=False) + "\n")
    return 0


@contextlib.contextmanager
def _written_whole(path: str | None) -> Iterator[TextIO]:
    """A file that takes its name once all is written: what a bad record cut short is not taken for the result."""
    if path is None:
        yield sys.stdout
        return
    part = Path(path + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _scored(
    model: RewardModel | RewardEnsemble, chunk: list[tuple[str, Mapping[str, Any]]], field: str
) -> Iterable[dict[str, Any]]:
    spread = f"{field}_std"
    for where, record in chunk:
        for taken in {field, spread} & set(record):
            raise ValueError(f"{where}: there is a field '{taken}' already; name another one with --field")
    prompts, completions = ([text_field(record, name, where) for where, record in chunk] for name in _TEXT)
    columns: dict[str, list[float]]
    if isinstance(model, RewardModel):
        columns = {field: model(completions, prompts)}
    else:
        scores_KB = model.member_scores(completions, prompts)
        columns = {field: model.reduce(scores_KB), spread: np.std(scores_KB, axis=0).tolist()}
    for index, (_, record) in enumerate(chunk):
        yield {**record, **{name: values[index] for name, values in columns.items()}}
