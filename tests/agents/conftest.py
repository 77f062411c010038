"""Models of every supported family, two layers of 32, and a task whose vocabulary can be counted on two hands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from agents import PPO
from agents.policy import TextPolicy
from agents.supervised import Pairs, pair_losses
from textgen_env import TextGenVectorEnv, TextMDP, TextTask

VOCAB = 40
_TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
_SHAPE: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(**_TOKENS, n_positions=48, n_embd=32, n_layer=2, n_head=4),
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8),
    "gpt_neox": lambda: GPTNeoXConfig(**_SHAPE, intermediate_size=48),
    "opt": lambda: OPTConfig(**_SHAPE, ffn_dim=48, word_embed_proj_dim=32),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=48),
    "phi": lambda: PhiConfig(**_SHAPE, intermediate_size=48),
    "smollm3": lambda: SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0]),
    "falcon": lambda: FalconConfig(**_SHAPE, alibi=False, num_kv_heads=2, new_decoder_architecture=True),
}


def make_policy(
    family: str = "gpt2",
    dtype: torch.dtype = torch.float64,
    *,
    attention: str = "sdpa",
    vocab_size: int = VOCAB,
    **kwargs: Any,
) -> TextPolicy:
    """A policy whose every weight, value head included, is far from its initial value: mistakes show."""
    config = FAMILIES[family]()
    config.vocab_size = vocab_size
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
        policy = TextPolicy(model, vocab_size, **kwargs)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    if dtype == torch.float64:
        _keep_norms_in_float64(policy)
    return policy


def _keep_norms_in_float64(policy: TextPolicy) -> None:
    """Root-mean-square norms step down to float32 whatever they are given, which would hide all beyond 1e-7."""

    def in_full(norm: torch.nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    for module in policy.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = in_full(module)


@dataclass
class Episodes:
    """What `TextPolicy.score_actions` is asked about."""

    input_ids_BS: Tensor
    prompt_lengths_B: Tensor
    action_mask_BT: Tensor
    groups_B: Tensor

    def score(self, policy: TextPolicy, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return policy.score_actions(self.input_ids_BS, self.prompt_lengths_B, self.action_mask_BT, **kwargs)

    def rows(self) -> list[tuple[list[int], int]]:
        """Token ids without padding, and how many of them are the prompt's."""
        totals = self.prompt_lengths_B + self.action_mask_BT.sum(-1)
        return [
            (row[:total].tolist(), int(prompt))
            for row, total, prompt in zip(self.input_ids_BS, totals, self.prompt_lengths_B, strict=True)
        ]


def make_episodes(
    prompts: Sequence[int] = (5, 3, 5, 5, 3, 1),
    completions: Sequence[int] = (4, 1, 6, 2, 5, 3),
    groups: Sequence[int] = (7, 2, 7, 7, 2, 9),
    *,
    pad: int = 0,
    extra_width: int = 0,
    vocab_size: int = VOCAB,
    seed: int = 0,
) -> Episodes:
    """Ragged episodes of random tokens; episodes of one group share their prompt."""
    generator = torch.Generator().manual_seed(seed)
    width = max(p + c for p, c in zip(prompts, completions, strict=True)) + extra_width
    shared = {
        group: torch.randint(2, vocab_size, (p,), generator=generator) for group, p in zip(groups, prompts, strict=True)
    }
    input_ids = torch.full((len(prompts), width), pad)
    for row, (p, c, group) in enumerate(zip(prompts, completions, groups, strict=True)):
        input_ids[row, :p] = shared[group]
        input_ids[row, p : p + c] = torch.randint(0, vocab_size, (c,), generator=generator)
    mask = torch.arange(max(completions)) < torch.tensor(completions)[:, None]
    return Episodes(input_ids, torch.tensor(prompts), mask, torch.tensor(groups))


# --- a small world --------------------------------------------------------------------------------------


def word_tokenizer(words: str) -> PreTrainedTokenizerFast:
    """One token a word: 0 is padding, 1 ends a text, then the words in order."""
    vocab = {word: index for index, word in enumerate(["<pad>", "<eos>", *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


WORDS = "a b c d e f"
PROMPTS = ["a", "b c d e", "c a", "d d d", "e f a b c", "f"]


def letters(completions, prompts, **_):
    """A reward that every token of the completion bears on: a's, less a little for every word."""
    return [text.split().count("a") - 0.1 * len(text.split()) for text in completions]


def make_mdp(reward: Any = letters, prompts: Sequence[str] = PROMPTS, words: str = WORDS, **kwargs: Any) -> TextMDP:
    task = TextTask.from_pairs({"train": [(prompt, "a b") for prompt in prompts]}, name="letters")
    return TextMDP(task, reward, word_tokenizer(words), **{"max_new_tokens": 6, **kwargs})


def make_env(
    num_envs: int = 4, reward: Any = letters, *, mdp: TextMDP | None = None, **kwargs: Any
) -> TextGenVectorEnv:
    env_kwargs = {key: kwargs.pop(key) for key in ("defer_scoring", "autoreset_mode") if key in kwargs}
    mdp = mdp or make_mdp(reward, **kwargs)
    return TextGenVectorEnv(num_envs, mdp=mdp, **{"autoreset_mode": AutoresetMode.DISABLED, **env_kwargs})


def gpt2_config(vocab_size: int = 8, *, positions: int = 24, spread: float = 0.2, layers: int = 2) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=1,
    )


def make_agent(env: Any = None, **options: Any) -> PPO:
    """PPO on the small world, its schedule constant, one update a handful of milliseconds."""
    defaults: dict[str, Any] = {
        "seed": 3,
        "device": "cpu",
        "episodes_per_rollout": 12,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "constant",
        "epochs": 2,
        "minibatches": 2,
        "num_envs": 4,
    }
    return PPO(gpt2_config(), make_env() if env is None else env, **{**defaults, **options})


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def pair_loss(
    policy: TextPolicy, pairs: Pairs, rows: Sequence[int], prompt_loss_weight: float = 0.0
) -> tuple[Tensor, float]:
    """The mean loss of some pairs, in one forward, and that of their answers alone."""
    part = pairs.select(rows)
    weighted, answers = pair_losses(policy, part, prompt_loss_weight)
    count = int((part.lengths_N - part.prompt_lengths_N).sum())
    return weighted / (count + prompt_loss_weight * int((part.prompt_lengths_N - 1).sum())), float(answers) / count


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None}


def largest_gap(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    assert first
    return max(float((first[name] - second[name]).abs().max()) for name in first)
