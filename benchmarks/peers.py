"""Other libraries on the same workload, each used the way its own users would."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from agents.environments import TextVecEnv
from agents.policy import Precision
from benchmarks.measure import peak_memory_mb
from benchmarks.workload import Workload
from textgen_env import TextGenVectorEnv


@dataclass(frozen=True)
class Peer:
    """One other library: how to run it, and what to say about the run."""

    name: str
    run: Callable[..., dict[str, float]]
    """Called with workload, device and repeats; returns tokens_per_second and peak_memory_mb."""
    modules: tuple[str, ...]
    epochs: int | None
    """Epochs an iteration, where not those of the workload."""
    note: str

    def missing(self) -> str | None:
        """The module that is not installed, if one is."""
        for module in self.modules:
            try:
                found = importlib.util.find_spec(module)
            except ModuleNotFoundError:
                found = None
            if found is None:
                return module
        return None


# --- Stable-Baselines3 ------------------------------------------------------------------------------------


class LastToken(BaseFeaturesExtractor):
    """The transformer as a features extractor: run over the whole observation, read at its last token."""

    def __init__(self, observation_space: spaces.Dict, config: Any) -> None:
        super().__init__(observation_space, config.n_embd)
        self.transformer = AutoModelForCausalLM.from_config(config).transformer

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Features (B, width) of the observations' prefixes."""
        mask = observations["attention_mask"].long()
        output = self.transformer(observations["input_ids"].long(), attention_mask=mask, use_cache=False)
        hidden = output.last_hidden_state
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(-1) - 1]


class _Stopwatch(BaseCallback):
    """Notes when rollouts and updates begin and end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.marks: list[float] = []

    def _on_rollout_start(self) -> None:
        self.marks.append(self.clock())

    def _on_rollout_end(self) -> None:
        self.marks.append(self.clock())

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.marks.append(self.clock())


def sb3_ppo(workload: Workload, device: str, repeats: int) -> dict[str, float]:
    """SB3's own PPO. A quarter of an episode and one epoch, scaled up: every step and every epoch costs the same."""
    torch.set_num_threads(1)
    steps = max(2, workload.new_tokens // 4)
    env = TextGenVectorEnv(workload.rows, mdp=workload.mdp(), autoreset_mode=AutoresetMode.DISABLED)
    agent = PPO(
        "MultiInputPolicy",
        TextVecEnv(env),
        n_steps=steps,
        n_epochs=1,
        device=device,
        policy_kwargs={
            "features_extractor_class": LastToken,
            "features_extractor_kwargs": {"config": workload.config()},
            "net_arch": [],
            "ortho_init": False,  # it would overwrite the transformer's weights
        },
    )
    watch = _Stopwatch(_clock(device))
    agent.learn(workload.rows * steps, callback=watch)
    started, collected, updated = watch.marks
    tokens = workload.rows * steps
    seconds_a_token = (collected - started) / tokens + workload.epochs * (updated - collected) / tokens
    return {"tokens_per_second": 1 / seconds_a_token, "peak_memory_mb": peak_memory_mb(device)}


# --- TRL --------------------------------------------------------------------------------------------------


class _Steps(TrainerCallback):
    """Seconds of every step of a trainer, after a first one that warms up."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.marks: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self.marks.append(self.clock())

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(b - a for a, b in zip(self.marks, self.marks[1:], strict=False))


class _NoScore(nn.Module):
    """A reward model in TRL's shape that costs nothing."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _NoBackbone()
        self.score = nn.Identity()


class _NoBackbone(nn.Module):
    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """One zero a token as the last hidden state."""
        return type("Output", (), {"hidden_states": [torch.zeros(*input_ids.shape, 1, device=input_ids.device)]})


def trl_ppo(workload: Workload, device: str, repeats: int, precision: Precision = "float32") -> dict[str, float]:
    """TRL's PPOTrainer, with a value model of the policy's size (it knows no other) and a reward that is free."""
    from datasets import Dataset

    trl = import_module("trl.experimental.ppo")
    torch.set_num_threads(1)
    config = workload.config()
    config.pad_token_id = 0
    policy = AutoModelForCausalLM.from_config(config)
    value_config = copy.deepcopy(config)
    value_config.num_labels = 1
    updates = repeats + 1
    at_once = workload.micro_rows or workload.rows
    prompts = [{"input_ids": ids} for ids in workload.prompt_ids(workload.rows * updates).tolist()]
    steps = _Steps(_clock(device))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = trl.PPOConfig(
            **_trainer_options(folder, device, precision),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=workload.rows // at_once,
            total_episodes=workload.rows * updates,
            num_ppo_epochs=workload.epochs,
            num_mini_batches=1,
            num_sample_generations=0,
            local_rollout_forward_batch_size=workload.rows,
            response_length=workload.new_tokens,
            temperature=1.0,
        )
        trl.PPOTrainer(
            args=options,
            processing_class=workload.tokenizer(),
            model=policy,
            ref_model=copy.deepcopy(policy),
            reward_model=_NoScore(),
            value_model=AutoModelForSequenceClassification.from_config(value_config),
            train_dataset=Dataset.from_list(prompts),
            callbacks=[steps],
        ).train()
    return {"tokens_per_second": workload.tokens / steps.seconds, "peak_memory_mb": peak_memory_mb(device)}


def trl_grpo(workload: Workload, device: str, repeats: int) -> dict[str, float]:
    """TRL's GRPOTrainer as it comes: one epoch, no critic, no reference; eight samples a prompt.

    It insists on the tokenizer's EOS: random weights end 3 % of the texts early, and they are counted as full.
    """
    from datasets import Dataset

    trl = import_module("trl")
    torch.set_num_threads(1)
    config = workload.config()
    config.pad_token_id = 0
    samples = min(8, workload.rows)
    updates = repeats + 1
    prompts = [{"prompt": text} for text in workload.prompts(workload.rows // samples * updates)]
    steps = _Steps(_clock(device))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = trl.GRPOConfig(
            **_trainer_options(folder, device),
            per_device_train_batch_size=workload.rows,
            num_generations=samples,
            max_completion_length=workload.new_tokens,
            max_steps=updates,
            temperature=1.0,
        )
        trl.GRPOTrainer(
            model=AutoModelForCausalLM.from_config(config),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=options,
            train_dataset=Dataset.from_list(prompts),
            processing_class=workload.tokenizer(),
            callbacks=[steps],
        ).train()
    return {"tokens_per_second": workload.tokens / steps.seconds, "peak_memory_mb": peak_memory_mb(device)}


def _trainer_options(folder: str, device: str, precision: Precision = "float32") -> dict[str, Any]:
    return {
        "output_dir": folder,
        "use_cpu": not device.startswith("cuda"),
        "bf16": precision == "bf16",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def _clock(device: str) -> Callable[[], float]:
    """CPU time, or wall time after the GPU's work is done."""
    if not device.startswith("cuda"):
        return time.process_time

    def wall() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return wall


PEERS = (
    Peer("SB3 PPO", sb3_ppo, ("stable_baselines3",), None, "a quarter of a rollout and one epoch of SB3's, scaled up"),
    Peer(
        "TRL PPO",
        trl_ppo,
        ("trl.experimental.ppo", "datasets"),
        None,
        "with a separate value model of the policy's size",
    ),
    Peer(
        "TRL GRPO",
        trl_grpo,
        ("trl", "datasets"),
        1,
        "no reference in either, as is TRL's default; ours has a critic; eight samples a prompt in both",
    ),
)
