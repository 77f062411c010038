"""Options as small dataclasses: one default and one line of help a field; the command line is made from them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from agents.policy import Precision
from textgen_env.lookup import did_you_mean

Config = TypeVar("Config", bound="AlgorithmConfig")
Schedule: TypeAlias = Literal["constant", "linear", "cosine"]
MICRO_BATCH_TOKENS = (
    "most tokens (padding included) in one forward, which changes no result; none takes what the GPU's memory holds "
    "(on a CPU 16,384), and memory that runs out halves it"
)


def option(default: Any, help: str) -> Any:
    """A dataclass field that carries its help text."""
    return field(default=default, metadata={"help": help})


@dataclass
class AlgorithmConfig:
    """What every algorithm shares."""

    learning_rate: float | None = option(
        None, "Adam's step size; by default 0.04 / hidden width of the model (3e-4 at 128, 5e-5 at 768)"
    )
    learning_rate_schedule: Schedule = option("linear", "linear and cosine fall to 0 over the run")
    learning_rate_warmup: float = option(0.0, "fraction of the run over which the learning rate rises from 0")
    num_envs: int = option(32, "rows decoded at once, where the environment does not say")
    episodes_per_rollout: int = option(128, "episodes started, and played to their end, before each update")
    samples_per_prompt: int = option(1, "episodes that share a prompt")
    gamma: float = option(1.0, "discount a token")
    temperature: float = option(1.0, "divides the logits, in sampling and in training alike")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm")
    adam_eps: float = option(1e-5, "Adam's epsilon")
    micro_batch_tokens: int | None = option(None, MICRO_BATCH_TOKENS)
    precision: Precision = option("float32", "bf16 is autocast with float32 log-softmax, values and losses")
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory for a third more time"
    )
    compile: bool = option(
        False, "compile the layers of an update's forward (torch.compile): faster on a GPU, after a minute's wait"
    )
    reward_scale: float = option(1.0, "what the learner gets is the environment's reward times this")
    reward_clip: float | None = option(None, "a token's scaled reward is cut to ± this; none leaves it")
    missing_eos_penalty: float = option(0.0, "reward taken off where the length cap, not an EOS, ended a completion")
    check_invariants: bool = option(True, "stop at the first rollout if sampler, trainer and reference disagree")

    def __post_init__(self) -> None:
        positive = (
            "num_envs",
            "episodes_per_rollout",
            "samples_per_prompt",
            "temperature",
            "micro_batch_tokens",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.episodes_per_rollout % self.samples_per_prompt:
            raise ValueError(
                f"episodes_per_rollout={self.episodes_per_rollout} must be a multiple of "
                f"samples_per_prompt={self.samples_per_prompt}"
            )
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {self.gamma}")
        if not 0 <= self.learning_rate_warmup < 1:
            raise ValueError(f"learning_rate_warmup must lie in [0, 1), got {self.learning_rate_warmup}")
        check_choice("learning_rate_schedule", self.learning_rate_schedule, Schedule)

    @property
    def policy_options(self) -> dict[str, Any]:
        """What a `TextPolicy` is made with."""
        names = ("temperature", "precision", "gradient_checkpointing", "compile")
        return {name: getattr(self, name) for name in names}


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that is none of a ``Literal``'s.

    Raises:
        ValueError: with the nearest choice.
    """
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; {did_you_mean(str(value), known)}")


def scheduled(schedule: Schedule, remaining: float, warmup: float = 0.0) -> float:
    """The factor of the learning rate when the fraction ``remaining`` of the run is left.

    Over the first ``warmup`` of the run it rises from 0: Adam's first steps have the full size whatever the gradient,
    and a policy that knows something already forgets by them.
    """
    done = 1 - remaining
    if done < warmup:
        return done / warmup
    left = remaining / (1 - warmup)
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return left if schedule == "linear" else 1.0


def make_config(kind: type[Config], config: Config | None, overrides: dict[str, Any]) -> Config:
    """The given config (or the defaults) with some fields exchanged.

    Raises:
        TypeError: an override is no field, with the nearest field's name.
    """
    known = [f.name for f in dataclasses.fields(kind)]
    for name in overrides:
        if name not in known:
            raise TypeError(f"{kind.__name__} has no option '{name}': {did_you_mean(name, known)}")
    return dataclasses.replace(config, **overrides) if config is not None else kind(**overrides)
