"""The workload that every contender runs: a GPT-2 of four layers, prompts of 32 tokens, 64 new ones, 32 rows.

Weights and prompts are random and the reward is constant: only speed is asked about, and scoring costs nothing.
No token ends an episode; where lengths vary they are drawn beforehand and forced on all contenders alike.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.logger import Logger
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StaticCache,
)

from agents import DQN, PPO
from agents.base import TextAlgorithm
from agents.policy import Precision
from agents.rollout import Collector
from textgen_env import Prompt, TextGenVectorEnv, TextMDP, TextTask


@dataclass(frozen=True)
class Workload:
    """The sizes. The defaults are those of the published figures."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    vocab_size: int = 2048
    prompt_tokens: int = 32
    new_tokens: int = 64
    shortest: int = 4
    """Where lengths vary they are uniform in [shortest, new_tokens]."""
    rows: int = 32
    epochs: int = 4
    env_steps: int = 20_000
    """Steps of the environment when it is measured alone."""
    family: Literal["gpt2", "llama"] = "gpt2"
    kv_heads: int | None = None
    """Of a Llama whose heads share keys and values."""
    inner: int | None = None
    """Width inside a layer's feed-forward part; None is four times the width."""
    micro_rows: int | None = None
    """Episodes of one forward and backward in an update; None is all rows."""

    @property
    def tokens(self) -> int:
        """New tokens of one rollout of one episode a row."""
        return self.rows * self.new_tokens

    def config(self) -> PreTrainedConfig:
        """The model's shape; nothing in it ends a text."""
        if self.family == "llama":
            return LlamaConfig(
                vocab_size=self.vocab_size,
                max_position_embeddings=self.prompt_tokens + self.new_tokens,
                hidden_size=self.width,
                intermediate_size=self.inner or 4 * self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
            )
        return GPT2Config(
            vocab_size=self.vocab_size,
            n_positions=self.prompt_tokens + self.new_tokens,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            n_inner=self.inner,
            bos_token_id=None,
            eos_token_id=None,
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One word a token: "<pad>", "<eos>", "w2", "w3", …"""
        words = {word: index for index, word in enumerate(["<pad>", "<eos>"])}
        words.update({f"w{index}": index for index in range(2, self.vocab_size)})
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")

    def prompt_ids(self, count: int) -> Tensor:
        """Random prompts, (count, prompt_tokens), the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(2, self.vocab_size, (count, self.prompt_tokens), generator=generator)

    def prompts(self, count: int) -> list[str]:
        """The same prompts as text."""
        return [" ".join(f"w{token}" for token in ids) for ids in self.prompt_ids(count).tolist()]

    def mdp(self) -> TextMDP:
        """The rules: a constant reward, and no token that ends an episode."""
        task = TextTask("throughput", {"train": tuple(Prompt(text) for text in self.prompts(8 * self.rows))})
        mdp = TextMDP(
            task,
            constant_reward,
            self.tokenizer(),
            max_prompt_tokens=self.prompt_tokens,
            max_new_tokens=self.new_tokens,
        )
        mdp.is_eos_V[:] = False
        return mdp

    def lengths(self, episodes: int) -> list[int]:
        """Lengths of episodes that vary, the same at every call."""
        return np.random.default_rng(0).integers(self.shortest, self.new_tokens + 1, episodes).tolist()

    def agent(
        self,
        device: str,
        precision: Precision,
        kind: type[TextAlgorithm] = PPO,
        *,
        model: PreTrainedModel | None = None,
        **options: Any,
    ) -> Any:
        """An agent: one episode a row a rollout, one minibatch an epoch; a copy of ``model``, or one newly drawn."""
        everything: dict[str, Any] = {
            "episodes_per_rollout": self.rows,
            "epochs": self.epochs,
            "minibatches": 1,
            "micro_batch_tokens": (self.micro_rows or self.rows) * (self.prompt_tokens + self.new_tokens),
        }
        known = {field.name for field in fields(kind.config_class)}
        defaults = {name: value for name, value in everything.items() if name in known}
        env = TextGenVectorEnv(self.rows, mdp=self.mdp(), autoreset_mode=AutoresetMode.DISABLED)
        source = self.config() if model is None else copy.deepcopy(model)
        agent = kind(source, env, seed=0, device=device, precision=precision, **{**defaults, **options})
        agent.set_logger(Logger(None, []))
        return agent

    def collector(self, agent: TextAlgorithm, lengths: Sequence[int] | None = None) -> Collector:
        """A collector of its own around the agent's policy, with deferred scoring; lengths are forced if given."""
        return Collector(FixedLengths(self.rows, self.mdp(), lengths), agent.policy, seed=0)


def constant_reward(completions: list[str], **_: Any) -> list[float]:
    """A reward that costs nothing."""
    return [0.0] * len(completions)


class FixedLengths(TextGenVectorEnv):
    """An environment whose episodes end at given lengths, in the order in which they start, over and over."""

    def __init__(self, num_envs: int, mdp: TextMDP, lengths: Sequence[int] | None) -> None:
        super().__init__(num_envs, mdp=mdp, autoreset_mode=AutoresetMode.DISABLED, defer_scoring=True)
        self._forced = lengths
        self._resets = 0

    def _reset_row(self, row: int, infos: dict[str, Any], index: int | None = None) -> None:
        super()._reset_row(row, infos, index)
        if self._forced is not None:
            self._caps[row] = self._prompt_lengths[row] + self._forced[self._resets % len(self._forced)]
            self._resets += 1


# --- the contenders ---------------------------------------------------------------------------------------


def iteration(agent: TextAlgorithm) -> int:
    """One whole iteration: rollout, reference, advantages, update. Returns the tokens it acted."""
    trajectories = agent.collector.collect(
        agent.config.episodes_per_rollout, samples_per_prompt=agent.config.samples_per_prompt
    )
    assert trajectories is not None
    agent.train(trajectories)
    return trajectories.num_tokens


def update_epoch(agent: PPO) -> Callable[[], int]:
    """One epoch over a rollout: the whole batch's gradients, and the optimiser step."""
    trajectories = agent.collector.collect(agent.config.episodes_per_rollout)
    assert trajectories is not None
    batch = agent.prepare(trajectories)
    everything = torch.arange(len(trajectories))

    def run() -> int:
        agent.accumulate_gradients(batch, everything)
        agent.optimiser_step()
        return trajectories.num_tokens

    return run


def q_update(agent: DQN) -> Callable[[], int]:
    """One update of a Q-learner on a rollout's episodes: two forwards, a backward, the step and the slow copy's."""
    trajectories = agent.collector.collect(agent.config.episodes_per_rollout)
    assert trajectories is not None

    def run() -> int:
        agent.update(trajectories)
        return trajectories.num_tokens

    return run


def generate(model: PreTrainedModel, prompts_BP: Tensor, new_tokens: int, precision: Precision) -> int:
    """Transformers' own sampling: the cache on and no top-k cut, which is all that its documentation offers here."""
    with autocast(model, precision):
        model.generate(  # type: ignore[operator]
            input_ids=prompts_BP,
            attention_mask=torch.ones_like(prompts_BP),
            do_sample=True,
            top_k=0,
            use_cache=True,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
    return prompts_BP.shape[0] * new_tokens


@torch.no_grad()
def bare_decode(model: PreTrainedModel, prompts_BP: Tensor, new_tokens: int, precision: Precision) -> int:
    """The least that sampling can be with a Hugging Face model: a preallocated cache, a softmax, a draw."""
    length = prompts_BP.shape[1]
    cache = StaticCache(config=model.config, max_cache_len=length + new_tokens)
    tokens = prompts_BP
    positions = torch.arange(length, device=tokens.device)[None]
    with autocast(model, precision):
        for step in range(new_tokens):
            output = model(
                input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            tokens = torch.multinomial(torch.softmax(output.logits[:, -1].float(), -1), 1)
            positions = torch.full((1, 1), length + step, device=tokens.device)
    return prompts_BP.shape[0] * new_tokens


@torch.no_grad()
def bare_forward(model: PreTrainedModel, tokens_BS: Tensor, precision: Precision) -> None:
    """The logits of whole sequences."""
    with autocast(model, precision):
        model(input_ids=tokens_BS, use_cache=False)


def bare_update(model: PreTrainedModel, tokens_BS: Tensor, precision: Precision) -> None:
    """Forward and backward of the language-model loss over whole sequences; no optimiser."""
    with autocast(model, precision):
        logits_BSV = model(input_ids=tokens_BS, use_cache=False).logits
    loss = nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1).float(), tokens_BS[:, 1:].flatten())
    loss.backward()
    model.zero_grad(set_to_none=True)


def environment_alone(workload: Workload) -> Callable[[], int]:
    """Steps of all rows, resets included, with random actions drawn beforehand. Returns row-steps."""
    env = FixedLengths(workload.rows, workload.mdp(), None)
    actions = np.random.default_rng(0).integers(0, workload.vocab_size, (workload.new_tokens, workload.rows))

    def run() -> int:
        rounds = max(1, workload.env_steps // workload.new_tokens)
        for _ in range(rounds):
            env.reset()
            for action in actions:
                env.step(action)
        return rounds * workload.tokens

    return run


@contextlib.contextmanager
def autocast(model: PreTrainedModel, precision: Precision) -> Iterator[None]:
    """The precision's context, for models that stand outside a policy."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield
