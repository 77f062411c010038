"""What an alignment report is asked with: prompts, judges, people's judgements, tables of words, a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.alignment.duel import as_pairwise
from agents.alignment.swaps import GENDER, Swaps
from agents.alignment.texts import LogLikelihoods
from reward_models.feedback import FeedbackStore
from reward_models.feedback.answers import Skip, Write
from reward_models.feedback.export import to_record
from reward_models.language_model import LanguageModel
from textgen_env import Reward, TextTask, resolve_reward
from textgen_env.lookup import did_you_mean, load_entry_point
from textgen_env.tasks.records import read_jsonl

_SQLITE = b"SQLite format 3\x00"


def read_prompts(file: str, prompt_field: str, reference_field: str | None) -> TextTask:
    """All prompts of a file, in one split.

    Raises:
        ValueError: it is of no known kind, or a record is no prompt.
        OSError: it cannot be read.
    """
    path = Path(file)
    fields: dict[str, Any] = {"prompt_field": prompt_field, "reference_field": reference_field}
    readers = {".jsonl": TextTask.from_jsonl, ".csv": TextTask.from_csv}
    if path.suffix in readers:
        return readers[path.suffix](str(path), fractions=(1.0, 0.0, 0.0), **fields)
    if path.suffix == ".txt":
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        return TextTask.from_pairs({"train": dict.fromkeys(lines)}, name=path.stem)
    raise ValueError(f"'{path}' is no file of prompts: {did_you_mean(path.suffix, [*readers, '.txt'])}")


def read_judges(names: Sequence[str]) -> tuple[dict[str, Reward], dict[str, Any]]:
    """Scorers of texts, and judges of pairs, by their names.

    Raises:
        ValueError: a name means nothing; the message names the nearest.
    """
    pointwise: dict[str, Reward] = {}
    pairwise: dict[str, Any] = {}
    for name in names:
        pairs = None
        if ":" in name:
            try:
                target = load_entry_point(name)
            except (ImportError, AttributeError) as error:  # what a mistyped 'module:attr' gives
                raise ValueError(str(error)) from error
            pairs = as_pairwise(target)
        if pairs is None:
            pointwise[name] = resolve_reward(name, name=name)
        else:
            pairwise[name] = pairs
    return pointwise, pairwise


def read_feedback(path: str) -> list[Mapping[str, Any]]:
    """People's judgements as records: from a feedback store, or from a JSON-lines file.

    Raises:
        ValueError: a record is no judgement.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        is_store = file.read(len(_SQLITE)) == _SQLITE
    if is_store:
        with FeedbackStore(path) as store:
            return [
                to_record(one)
                for one in store.judgements()
                if one.purpose == "fresh" and not isinstance(one.answer, (Skip, Write))
            ]
    records = []
    for where, record in read_jsonl(path):
        kinds = ({"prompt", "chosen", "rejected"}, {"prompt", "ranking"}, {"prompt", "completion", "rating"})
        if not any(fields <= set(record) for fields in kinds):
            raise ValueError(
                f"{where}: fields {', '.join(record) or 'none'} are no judgement. Wanted are prompt, chosen and "
                "rejected; prompt and ranking; or prompt, completion and rating"
            )
        records.append(record)
    return records


def read_swaps(name: str | None) -> Swaps | None:
    """The table of that name, or in that file; None for none.

    Raises:
        ValueError: there is none, or the file holds no pairs.
    """
    if name is None:
        return None
    if name == "gender":
        return Swaps(GENDER, "gender")
    if not Path(name).is_file():
        raise ValueError(f"unknown table of swaps '{name}'; {did_you_mean(name, ['gender'])}, or a .json or .csv file")
    return Swaps.read(name)


def likelihoods(lm: LanguageModel) -> LogLikelihoods:
    """The language model as `text_figures` asks it: each text after its prompt."""

    def answer(prompts: Sequence[str], texts: Sequence[str]) -> tuple[list[float], list[int]]:
        continuations = lm.continuations(list(prompts), list(texts))
        return lm.log_likelihoods(continuations), [len(text) for _, text in continuations]

    return answer
