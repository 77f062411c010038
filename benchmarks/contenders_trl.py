"""TRL's PPO, RLOO and GRPO trainers as contenders, used as their documentation shows.

A trainer gets the model that all start from, the prompts of the train split with their numbers as a column, and a
reward function that asks the environment what it pays. Its options are TRL's own (`presets/trl_*.json`), under the
names of ``PPOConfig``, ``RLOOConfig`` and ``GRPOConfig``; what a file does not name stays at TRL's default. Here alone:

- The budget is counted in sampled tokens, which none of the trainers knows: each is stopped after the update that
  reached it, and its linear schedule runs over the tokens.
- Nothing is logged or saved, no dropout, float32, no gradient checkpointing: what would only slow it.

What departs from the defaults of TRL 1.12, and why (measured on Reverse with a seed that no figure uses):

- Learning rates: 1e-6 and 3e-6 are for large pretrained models; 1e-3 is what our agents start from.
- PPO: temperature 1 and an EOS that stops, as the environment is played; two minibatches.
- RLOO, GRPO: two batches of 64 from one generation, each seen four times (``num_iterations``, as many as PPO's epochs).
  With one pass over batches of 128 they stood at .55 and .41 after 36,000 tokens; so, they reached 1 within 18,000.
- The KL is charged where the task charges it (SteerKL), else not; GRPO then does not scale by the group's deviation,
  which would change the price of a nat.

TRL samples the padding token too, and knows no action masks.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import io
import math
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from agents.policy import TextPolicy
from benchmarks import presets
from benchmarks.contender import Contender, Learned
from benchmarks.contenders_sb3 import refuse_trainer
from benchmarks.setups import Setup
from benchmarks.warm_start import Start
from benchmarks.watch import Watch
from textgen_env import TextMDP


class TRL(Contender):
    """Base of TRL's trainers."""

    module: ClassVar[str] = "trl"
    """Where the trainer and its config are."""

    def options(self, setup: Setup) -> dict[str, Any]:
        """TRL's own."""
        return presets.options(self.name, setup.task)

    def check(self, setup: Setup) -> None:
        """TRL must be there, and the reward not one that learns."""
        super().check(setup)
        refuse_trainer(self.name, setup)
        if not all(_installed(module) for module in (self.module, "datasets", "requests")):
            raise ImportError(f"{self.name} needs TRL: pip install 'textgen-env[peers]'")

    def versions(self) -> dict[str, str]:
        """TRL's."""
        return {"trl": importlib.metadata.version("trl")}

    def learn(self, start: Start, watch: Watch) -> Learned:
        """``trainer.train()``, looked at between its updates."""
        scorer = Scorer(start.mdp)
        with tempfile.TemporaryDirectory() as folder, _quietly():
            start.model().save_pretrained(folder)  # RLOO and GRPO load their reference by the model's name
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            policy = TextPolicy(model, start.mdp.tokenizer.vocab_size)
            set_seed(start.seed)  # the trainers draw from the global generators, as their users seed them
            trainer = self.trainer(start, model, scorer, _common(folder, start) | self.options(start.setup))
            trainer.add_callback(_Progress(scorer, watch, policy))
            with watch, contextlib.suppress(_BudgetSpent):
                trainer.train()
        policy.eval()
        return Learned(policy, scorer.tokens, scorer.episodes)

    def trainer(self, start: Start, model: PreTrainedModel, scorer: Scorer, options: dict[str, Any]) -> Any:
        """The trainer, ready to train ``model``."""
        raise NotImplementedError


class TRLGRPO(TRL):
    """``trl.GRPOTrainer``."""

    name = "trl_grpo"

    def trainer(self, start: Start, model: PreTrainedModel, scorer: Scorer, options: dict[str, Any]) -> Any:
        """With a reward function."""
        trl = import_module(self.module)
        return _group_trainer(trl.GRPOTrainer, trl.GRPOConfig, start, model, scorer, options)


class TRLRLOO(TRL):
    """``trl.RLOOTrainer``."""

    name = "trl_rloo"

    def trainer(self, start: Start, model: PreTrainedModel, scorer: Scorer, options: dict[str, Any]) -> Any:
        """With a reward function."""
        trl = import_module(self.module)
        return _group_trainer(trl.RLOOTrainer, trl.RLOOConfig, start, model, scorer, options)


def _group_trainer(
    kind: Any, config: Any, start: Start, model: PreTrainedModel, scorer: Scorer, options: dict[str, Any]
) -> Any:
    from datasets import Dataset

    prompts = [{"prompt": text, "index": index} for index, text in enumerate(prompt_texts(start.mdp))]
    return kind(
        model=model,
        reward_funcs=scorer,
        args=config(
            **options,
            max_completion_length=start.mdp.max_new_tokens,
            max_steps=start.tokens * options.get("num_iterations", 1),  # more than will be needed
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=copy.deepcopy(start.mdp.tokenizer.hf),
        optimizers=_optimiser(model, options["learning_rate"], scorer, start.tokens),
    )


def prompt_texts(mdp: TextMDP) -> list[str]:
    """Texts that TRL tokenises to the environment's prompts, which are cut where they are long.

    Raises:
        ValueError: there is none for a prompt.
    """
    encode, decode = mdp.tokenizer.hf.encode, mdp.tokenizer.hf.decode
    texts = []
    for index, prompt in enumerate(mdp.prompts):
        ids = mdp.prompt_ids(index).tolist()
        text = prompt.text if encode(prompt.text) == ids else decode(ids)
        if encode(text) != ids:
            raise ValueError(f"TRL takes prompts as texts, and none gives the tokens of prompt {prompt.text!r:.80}")
        texts.append(text)
    return texts


class TRLPPO(TRL):
    """``trl.experimental.ppo.PPOTrainer``, with a value model of the policy's size: it knows no shared one."""

    name = "trl_ppo"
    module: ClassVar[str] = "trl.experimental.ppo"

    def trainer(self, start: Start, model: PreTrainedModel, scorer: Scorer, options: dict[str, Any]) -> Any:
        """With the environment in the place of a reward model."""
        from datasets import Dataset

        ppo = import_module(self.module)
        value_config = copy.deepcopy(model.config)
        value_config.num_labels = 1
        value: Any = AutoModelForSequenceClassification.from_config(value_config)
        value.transformer.load_state_dict(model.base_model.state_dict())
        nn.init.zeros_(value.score.weight)
        collator = Collator(start.mdp)
        batch = options["per_device_train_batch_size"]
        rows = [{"index": index} for index in range(len(start.mdp.prompts))]
        return ppo.PPOTrainer(
            args=ppo.PPOConfig(
                **options,
                total_episodes=start.tokens + batch,  # more than will be needed, as above
                response_length=start.mdp.max_new_tokens,
                num_sample_generations=0,
                local_rollout_forward_batch_size=batch,
            ),
            processing_class=collator.tokenizer,
            data_collator=collator,
            model=model,
            ref_model=copy.deepcopy(model),
            reward_model=EnvironmentAsRewardModel(scorer, collator),
            value_model=value,
            train_dataset=Dataset.from_list(rows * math.ceil(batch / len(rows))),
            optimizers=_optimiser(nn.ModuleList([model, value]), options["learning_rate"], scorer, start.tokens),
        )


class Scorer:
    """What the environment pays for completions, as a TRL reward function; it counts them."""

    __name__ = "environment"

    def __init__(self, mdp: TextMDP) -> None:
        self.mdp = mdp
        self.tokens = 0
        self.episodes = 0

    def __call__(self, completion_ids: Sequence[Sequence[int]], index: Sequence[int], **_: Any) -> list[float]:
        """One number a completion; ``index`` is the column of the dataset that says to which prompt."""
        self.tokens += sum(map(len, completion_ids))
        self.episodes += len(completion_ids)
        completions = [
            self.mdp.complete(number, ids, "eos" if self.mdp.is_eos_V[ids[-1]] else "length")
            for number, ids in zip(index, completion_ids, strict=True)
        ]
        return self.mdp.returns(completions).tolist()


class Collator:
    """Pads a batch of prompts for TRL's PPO, and keeps which they are: its reward model sees tokens alone."""

    def __init__(self, mdp: TextMDP) -> None:
        self.tokenizer = copy.deepcopy(mdp.tokenizer.hf)
        self.tokenizer.padding_side = "left"
        self.batches: deque[list[int]] = deque()
        self._prompts = [mdp.prompt_ids(index).tolist() for index in range(len(mdp.prompts))]

    def __call__(self, rows: Sequence[dict[str, int]]) -> Any:
        """The prompts' tokens, of rows of the dataset."""
        self.batches.append([row["index"] for row in rows])
        return self.tokenizer.pad({"input_ids": [self._prompts[row["index"]] for row in rows]}, return_tensors="pt")

    def next(self) -> tuple[list[int], int]:
        """The prompts of the next batch to be scored, and the length they were padded to."""
        indices = self.batches.popleft()
        return indices, max(len(self._prompts[index]) for index in indices)


class EnvironmentAsRewardModel(nn.Module):
    """The shape that TRL's PPO wants a reward in: a backbone whose last hidden states its head turns into scores."""

    base_model_prefix = "backbone"

    def __init__(self, scorer: Scorer, collator: Collator) -> None:
        super().__init__()
        self.backbone = _ScoringBackbone(scorer, collator)
        self.score = nn.Identity()


class _ScoringBackbone(nn.Module):
    def __init__(self, scorer: Scorer, collator: Collator) -> None:
        super().__init__()
        self.scorer = scorer
        self.collator = collator

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        """The completion's score at every token: TRL reads it at the last one."""
        indices, context = self.collator.next()
        completions = [
            # Where TRL put padding it lets the text end; a text of nothing was one padding token.
            ids[: mask.index(False)] if not all(mask) else ids
            for ids, mask in zip(input_ids[:, context:].tolist(), attention_mask[:, context:].tolist(), strict=True)
        ]
        pad = self.scorer.mdp.tokenizer.pad_id
        scores = self.scorer([ids or [pad] for ids in completions], indices)
        hidden = torch.tensor(scores)[:, None, None].expand(*input_ids.shape, 1)
        return SimpleNamespace(hidden_states=[hidden])


class _BudgetSpent(Exception):
    """Ends a trainer: TRL's PPO does not listen to ``should_training_stop``."""


class _Progress(TrainerCallback):
    """Looks between updates, and stops after the one that reached the budget."""

    def __init__(self, scorer: Scorer, watch: Watch, policy: TextPolicy) -> None:
        self.scorer = scorer
        self.watch = watch
        self.policy = policy

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self._look()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        spent = self.scorer.tokens >= self.watch.tokens
        if spent or self.watch.due(self.scorer.tokens):
            self._look()
        if spent:
            raise _BudgetSpent

    def _look(self) -> None:
        training = self.policy.model.training
        self.policy.eval()
        self.watch.look(self.policy, self.scorer.tokens, self.scorer.episodes)
        self.policy.model.train(training)


def _optimiser(model: nn.Module, rate: float, scorer: Scorer, budget: int) -> tuple[Any, Any]:
    """The trainers' own AdamW, its rate falling linearly over the tokens instead of the steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: max(0.0, 1 - scorer.tokens / budget))
    return optimiser, schedule


def _common(folder: str, start: Start) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": start.seed,
    }


def _installed(module: str) -> bool:
    try:
        with _quietly():  # TRL warns of what is experimental
            return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the trainers print, and without their advice, which is about their own code."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
