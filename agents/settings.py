"""What a run is made of, as one small dataclass: the environment, the model, and how long."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents.adapters import add_lora
from agents.config import option
from agents.model_source import ModelSource, load_model
from agents.models import small_gpt2
from textgen_env import TextMDP, TextTask
from textgen_env.lookup import did_you_mean
from textgen_env.tasks import resolve_task

_FRACTIONS = (0.8, 0.1, 0.1)
ENVIRONMENT_FIELDS = (
    "env",
    "data",
    "prompt_field",
    "reference_field",
    "template",
    "split_fractions",
    "reward",
    "max_prompt_tokens",
    "max_new_tokens",
)
"""The settings that say what is played."""


@dataclass
class RunSettings:
    """The options of a run, apart from the algorithm's own. Their order is that of ``textgen train --help``."""

    env: str | None = option(None, "id of a registered text environment; see 'textgen list'")
    data: str | None = option(
        None, "your own prompts: a .jsonl or .csv file, 'module:attr', or the name of a Hugging Face dataset"
    )
    prompt_field: str = option("prompt", "field of the data that holds the prompt")
    reference_field: str | None = option("reference", "field that holds one reference text or several")
    template: str = option("{prompt}", "what each prompt is written into; it may name other fields too")
    split_fractions: tuple[float, float, float] = option(
        _FRACTIONS, "shares of train, validation and test; a prompt's hash decides where it goes"
    )
    reward: Any = option(
        None, "a name from 'textgen list', or 'module:attr' for your own function; the environment's by default"
    )
    max_prompt_tokens: int | None = option(
        None, "longer prompts are cut; by default the environment's own, or the longest prompt"
    )
    max_new_tokens: int | None = option(None, "cap on a completion's tokens; by default the environment's own, or 32")

    model: Any = option(None, "a Hugging Face causal LM, by hub name or folder; by default a small GPT-2 from scratch")
    layers: int = option(2, "transformer blocks of the model from scratch")
    width: int = option(128, "its hidden width")
    heads: int = option(4, "its attention heads")
    vocab_size: int | None = option(None, "size of the tokenizer trained for it; by default the environment's own")

    lora_rank: int | None = option(
        None, "train low-rank adapters of this rank on all linear layers instead of the model's own weights"
    )

    algo: str = option("ppo", "the algorithm; see 'textgen list'")
    total_tokens: int = option(200_000, "tokens to act in all; the last rollout may run over")
    warm_start_epochs: float | None = option(
        None,
        "supervised passes over the references before RL; by default 2 for a model from scratch (where there are "
        "references), 0 for a pretrained one",
    )
    logged: str | None = option(
        None,
        "a JSON-lines file of written completions (prompt, completion, perhaps reward): what supervised and ilql learn "
        "from, by default the references, and demonstrations for dqn",
    )
    seed: int = option(0, "seeds weights, prompts and sampling")

    eval_every: int | None = option(None, "tokens between evaluations on held-out prompts; by default a tenth of all")
    eval_prompts: int = option(200, "held-out prompts an evaluation asks, at most")
    checkpoint_every: int | None = option(None, "tokens between checkpoints; by default as the evaluations")
    output: str | None = option(None, "the run's folder; by default runs/NAME-TIMESTAMP")
    device: str = option("auto", "auto, cpu, cuda, ...")
    shard_weights: bool = option(
        False, "leave each of several processes a share of the weights and of Adam's averages: for large models"
    )
    threads: int = option(
        1, "CPU threads; small models are slower on several, and one makes a run repeatable to the last digit"
    )

    def __post_init__(self) -> None:
        self._check_source()
        for name in ("total_tokens", "eval_prompts", "threads", "eval_every", "checkpoint_every", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.warm_start_epochs is not None and self.warm_start_epochs < 0:
            raise ValueError(f"warm_start_epochs must be at least 0, got {self.warm_start_epochs}")
        train, validation, test = self.split_fractions  # a list where it was read from JSON
        self.split_fractions = (train, validation, test)
        if self.env is not None:
            self._refuse_changed(
                ("prompt_field", "reference_field", "template", "split_fractions"),
                f"'{self.env}' brings its own prompts: it goes with data only",
            )
        if self.model is not None:
            self._refuse_changed(
                ("layers", "width", "heads", "vocab_size"), f"model '{self.model}' has its own: leave it out"
            )

    def _check_source(self) -> None:
        if (self.env is None) == (self.data is None):
            raise ValueError("say where the prompts come from: either env (a registered id) or data (your own)")

    def _refuse_changed(self, names: tuple[str, ...], why: str) -> None:
        """An option that would be ignored is an error."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} has no effect here, {why}")

    @property
    def name(self) -> str:
        """A short name for folder and report: the environment's or the data's, and the algorithm's."""
        source = self.env or self.data or ""
        stem = source.rsplit(":", 1)[-1].removesuffix("-v0") if self.env else Path(source.replace(":", "/")).stem
        return f"{stem.rsplit('/', 1)[-1]}-{self.algo}"

    @property
    def eval_interval(self) -> int:
        """Tokens between evaluations."""
        return self.eval_every or max(1, self.total_tokens // 10)


def make_mdp(settings: RunSettings, tokenizer: Any = None) -> TextMDP:
    """The rules of the environment that the settings describe, on the train split.

    Args:
        settings: the settings.
        tokenizer: instead of the one that comes with ``settings.model``.

    Raises:
        ValueError: the environment, the reward or the data is unknown or malformed; the message names the mend.
        OSError: the data, or the model's tokenizer, cannot be read.
    """
    if tokenizer is None and isinstance(settings.model, (str, Path)):
        tokenizer = settings.model
    chosen: dict[str, Any] = {
        "reward": settings.reward,
        "tokenizer": tokenizer,
        "max_prompt_tokens": settings.max_prompt_tokens,
        "max_new_tokens": settings.max_new_tokens,
        "vocab_size": settings.vocab_size,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    try:
        if settings.env is not None:
            return _registered(settings.env, chosen)
        task = _task(settings)
        if settings.reward is None and task.reward is None:
            raise ValueError("your own data needs a reward: a name from 'textgen list', or 'module:attr'")
        return TextMDP(task, **chosen)
    except (ImportError, AttributeError) as error:  # what a mistyped 'module:attr' gives; the message says which
        raise ValueError(str(error)) from error


def make_model(settings: RunSettings, mdp: TextMDP) -> ModelSource:
    """What the agent is to be built on: the named model, or the configuration of a fresh one that fits ``mdp``.

    With ``lora_rank`` it is that model itself, adapters on it.

    Raises:
        ImportError: ``lora_rank`` is given, and peft is not installed.
    """
    source: ModelSource = settings.model
    if settings.model is None:
        source = small_gpt2(
            mdp.tokenizer,
            positions=mdp.max_prompt_tokens + mdp.max_new_tokens,
            layers=settings.layers,
            width=settings.width,
            heads=settings.heads,
        )
    if settings.lora_rank is None:
        return source
    adapted: Any = add_lora(load_model(source, settings.seed), settings.lora_rank, settings.seed)
    return adapted


def environment_ids() -> dict[str, Mapping[str, Any]]:
    """Every registered text environment, with the arguments it was registered with."""
    found: dict[str, Mapping[str, Any]] = {}
    for id, spec in sorted(gym.registry.items()):
        entry: Any = spec.entry_point
        if isinstance(entry, str) and entry.startswith("textgen_env."):
            found[id] = spec.kwargs
        elif type(entry).__module__ == "textgen_env.registry":  # registered with objects, which it holds itself
            found[id] = entry.defaults
    return found


def _registered(id: str, chosen: Mapping[str, Any]) -> TextMDP:
    module, _, plain = id.rpartition(":")
    if module:
        importlib.import_module(module)  # Gymnasium's own notation: the module registers the id
    known = environment_ids()
    if plain not in known:
        raise ValueError(
            f"unknown text environment '{plain}'; {did_you_mean(plain, known)}. "
            "An id that your own module registers is written 'module:id'"
        )
    mdp: TextMDP = gym.make_vec(plain, num_envs=1, **chosen).unwrapped.mdp  # type: ignore[attr-defined]
    return mdp


def _task(settings: RunSettings) -> TextTask:
    data = settings.data or ""
    fields: dict[str, Any] = {
        "prompt_field": settings.prompt_field,
        "reference_field": settings.reference_field,
        "template": settings.template,
        "fractions": settings.split_fractions,
    }
    suffix = Path(data).suffix
    if suffix == ".jsonl":
        return TextTask.from_jsonl(data, **fields)
    if suffix == ".csv":
        return TextTask.from_csv(data, **fields)
    if ":" in data:
        return resolve_task(data)
    if Path(data).is_file():
        raise ValueError(f"'{data}' is neither a .jsonl nor a .csv file: convert it, or write a 'module:attr' task")
    return TextTask.from_dataset(data, **fields)
