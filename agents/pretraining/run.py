"""Pretraining: a small causal language model on the user's own texts, by likelihood or with human preferences."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from agents.micro_batches import MicroBatches
from agents.model_source import load_model, tokenizer_beside
from agents.models import small_gpt2
from agents.policy import TextPolicy
from agents.pretraining.blocks import Blocks, Controls, encode_segments, pieces_of
from agents.pretraining.documents import Document, segments_of, split_documents
from agents.pretraining.figures import described, predictions, text_figures
from agents.pretraining.objectives import keep_document
from agents.pretraining.preference import (
    BAD_TOKEN,
    GOOD_TOKEN,
    ObjectiveConfig,
    check_two_sides,
    segment_rewards,
    summary_of_rewards,
    tokenizer_that_starts,
    with_control_vocabulary,
)
from agents.pretraining.settings import PretrainConfig, PretrainSettings
from agents.run_folder import check_free, write_json
from agents.training_loop import Checkpoint, TrainingLoop, Watch, train
from textgen_env import TextTokenizer
from textgen_env.reward_registry import resolve_reward
from textgen_env.tokenizer import train_tokenizer

RECORD, CHECKPOINT = "pretrain.json", "checkpoint.pt"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
_BLOCK_SIZE = 256


@dataclass(frozen=True)
class Pretrained:
    """What pretraining came to."""

    policy: TextPolicy
    tokenizer: TextTokenizer
    history: list[dict[str, float]]
    """A row a validation: step, loss (of that step's batch), and the figures of `text_figures`."""
    finished: bool
    """False where Ctrl-C or SIGTERM ended it; ``resume=True`` goes on."""
    folder: Path | None

    @property
    def prompt(self) -> str:
        """What a text is to begin with: the control token of good ones, where there is one."""
        return GOOD_TOKEN if GOOD_TOKEN in self.tokenizer.hf.get_vocab() else ""


StageHook: TypeAlias = Callable[[str, str], None]


def pretrain(
    documents: Iterable[Document | str],
    settings: PretrainSettings | None = None,
    config: PretrainConfig | None = None,
    objective: ObjectiveConfig | None = None,
    *,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    on_stage: StageHook | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Pretrained:
    """Pretrain a causal language model on documents.

    Each stands between a start token and an EOS, and sees nothing but itself. All weights start from the seed, dropout
    is never active, and the order of the blocks is a function of the seed: on one device and number of threads the
    same call gives the same weights, and so does one that was killed and resumed (on CPU, to the last bit).

    Args:
        documents: texts, or `Document`s, as `read_documents` reads them.
        settings: model, tokenizer, blocks, and the folder to write, if any.
        config: epochs, batch size, learning rate.
        objective: by default likelihood.
        resume: go on in ``settings.output`` from its checkpoint, if it has one; all else must be as it was.
        about: what else ``pretrain.json`` shall hold: where the texts came from, say.
        on_stage: called with a stage's name and a line about it.
        on_step: called with (steps done, steps in all, loss).

    Raises:
        TypeError: ``documents`` is one string.
        ValueError: settings that do not fit together, an empty document, too few of them, a threshold that tells
            nothing apart, or a checkpoint of other texts.
        FileExistsError: the folder holds something, and ``resume`` is not set.
        FileNotFoundError: there is nothing to resume.
        RewardError: the reward fails on a text.
        FloatingPointError: the gradients are not finite.
    """
    if isinstance(documents, str):
        raise TypeError("documents must be a list of texts, not one text; read_documents reads files")
    settings, config = settings or PretrainSettings(), config or PretrainConfig()
    job = _Job(settings, config, objective or ObjectiveConfig(), resume, on_stage)
    return job.run([Document(text) if isinstance(text, str) else text for text in documents], about or {}, on_step)


class _Job:
    """One run's parts, in the order in which they are made."""

    def __init__(
        self,
        settings: PretrainSettings,
        config: PretrainConfig,
        objective: ObjectiveConfig,
        resume: bool,
        on_stage: StageHook | None,
    ) -> None:
        self.settings, self.config, self.objective, self.resume = settings, config, objective, resume
        self.say = on_stage or (lambda stage, detail: None)
        self.folder = None if settings.output is None else Path(settings.output)
        if resume:
            if self.folder is None:
                raise ValueError("resume goes on in a folder: say which one by settings.output")
            if read_record(self.folder).get("status") == "finished":
                raise ValueError(f"the pretraining in '{self.folder}' is finished: there is nothing to resume")
        elif self.folder is not None:
            check_free(self.folder)  # before hours of work, not after them
        self.reward = None if objective.reward is None else resolve_reward(objective.reward)

    def run(
        self, documents: list[Document], about: Mapping[str, Any], on_step: Callable[[int, int, float], None] | None
    ) -> Pretrained:
        held_in, held_out = split_documents(documents, self.settings.validation_share)
        self.say("texts", f"{len(held_in):,} documents to learn from, {len(held_out):,} held out")
        tokenizer = self.tokenizer(held_in)
        policy = self.policy(tokenizer)
        controls = self.controls(tokenizer)
        self.block_size = self.settings.block_size or min(_BLOCK_SIZE, positions_of(policy.model) or _BLOCK_SIZE)
        blocks = self.blocks(held_in, tokenizer, controls, to_learn=True)
        unseen = self.blocks(held_out, tokenizer, controls, to_learn=False) if held_out else None
        self.say(
            "model",
            f"{policy.model.num_parameters():,} parameters, on {policy.device}; {len(blocks):,} blocks of "
            f"{self.block_size}, {blocks.num_tokens:,} tokens, {blocks.num_tokens / blocks.pieces_NS.numel():.0%} full",
        )
        self.write(about, tokenizer)
        trained: list[nn.Parameter] = list(policy.model.parameters())
        if self.objective.objective == "advantage_weighted":
            trained += policy.value_head.parameters()
        loop = TrainingLoop(
            trained, len(blocks), self.config, width=policy.value_head.in_features, seed=self.settings.seed
        )

        micro_batches = MicroBatches(policy, self.config)

        def validate() -> dict[str, float]:
            assert unseen is not None
            return text_figures(policy, unseen, [document.text for document in held_out], controls, self.config)

        watch = Watch(
            validate=None if unseen is None else validate,
            every=self.settings.checkpoint_every or max(1, loop.steps // 10),
            checkpoint=None if self.folder is None else Checkpoint(self.folder / CHECKPOINT, self.fingerprint(blocks)),
            on_step=on_step,
            on_validation=lambda row: self.say("validation", described(row)),
        )

        def learn(rows: list[int]) -> float:
            chosen = blocks.select(rows)

            def loss(_rows: Tensor, part: Blocks) -> tuple[Tensor, dict[str, Tensor]]:
                batch = part.batch(policy.device)
                log_probs_N, values_N = predictions(policy, batch)
                value = self.objective.loss(log_probs_N, values_N, batch.rewards_N, count=chosen.num_tokens)
                return value, {"loss": value}

            return micro_batches.accumulate(chosen, loss)["loss"]

        self.say("learn", f"{self.objective.objective}, {loop.steps:,} steps of {loop.batch} blocks")
        finished = train(loop, policy, learn, watch)
        found = Pretrained(policy, tokenizer, watch.history, finished, self.folder)
        if self.folder is not None:
            self.save(found, loop.step)
        return found

    # ------------------------------------------------------------ the parts

    def tokenizer(self, held_in: Sequence[Document]) -> TextTokenizer:
        """The one that was named, or that comes with the model, or that is trained here."""
        settings = self.settings
        if self.resume and self.folder is not None and (self.folder / "tokenizer.json").is_file():
            return TextTokenizer(self.folder)
        source = settings.tokenizer if settings.tokenizer is not None else tokenizer_beside(settings.model)
        if source is None and settings.model is not None:
            raise ValueError(f"model '{settings.model}' comes without a tokenizer: name one with --tokenizer")
        if source is None:
            own = train_tokenizer((document.text for document in held_in), settings.vocab_size)
            chosen: Any = tokenizer_that_starts(own)
        else:
            chosen = AutoTokenizer.from_pretrained(str(source)) if isinstance(source, (str, Path)) else source
        if self.objective.objective == "conditional":
            chosen = with_control_vocabulary(chosen)
        return TextTokenizer(chosen)

    def policy(self, tokenizer: TextTokenizer) -> TextPolicy:
        """The model on its device, with room for every token and a block's positions."""
        settings = self.settings
        source: Any = settings.model
        if source is None:
            source = small_gpt2(
                tokenizer,
                positions=settings.block_size or _BLOCK_SIZE,
                layers=settings.layers,
                width=settings.width,
                heads=settings.heads,
            )
        model = load_model(source, settings.seed)
        positions = positions_of(model)
        if positions is not None and (settings.block_size or 0) > positions:
            raise ValueError(
                f"block_size={settings.block_size}, but model '{settings.model}' has only {positions} positions"
            )
        embeddings: Any = model.get_input_embeddings()
        if embeddings.weight.shape[0] < tokenizer.vocab_size:
            with torch.random.fork_rng(devices=[]):
                torch.random.manual_seed(settings.seed)
                model.resize_token_embeddings(tokenizer.vocab_size)
        if self.objective.objective == "conditional":  # what is generated says nothing of control tokens
            generation: Any = model.generation_config
            generation.suppress_tokens = tokenizer.hf.convert_tokens_to_ids([GOOD_TOKEN, BAD_TOKEN])
        policy = TextPolicy(
            model,
            tokenizer.vocab_size,
            precision=settings.precision,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        return policy.to(get_device(settings.device))

    def controls(self, tokenizer: TextTokenizer) -> Controls | None:
        """The control tokens, where the objective has them."""
        if self.objective.objective != "conditional":
            return None
        assert self.objective.threshold is not None
        good, bad = tokenizer.hf.convert_tokens_to_ids([GOOD_TOKEN, BAD_TOKEN])
        return Controls(good, bad, self.objective.threshold, self.objective.drop_control)

    def blocks(
        self, documents: Sequence[Document], tokenizer: TextTokenizer, controls: Controls | None, *, to_learn: bool
    ) -> Blocks:
        """The documents judged, filtered, encoded and packed. Held-out ones are neither filtered nor lack a control."""
        parts = [segments_of(document.text, self.objective.segments) for document in documents]
        if self.reward is None:
            rewards = [[0.0] * len(part) for part in parts]
        else:
            rewards = segment_rewards(self.reward, documents, parts)
            if to_learn:
                self.say("rewards", self.about_rewards(rewards))
        kept: Sequence[int] = range(len(parts))
        if to_learn and self.objective.objective == "filtering":
            assert self.objective.threshold is not None
            kept = [index for index in kept if keep_document(rewards[index], self.objective.threshold)]
            self.say("filter", f"{len(kept):,} of {len(parts):,} documents kept")
        if controls is not None and not to_learn:
            controls = dataclasses.replace(controls, drop=0.0)
        rng = np.random.default_rng([self.settings.seed, 1])
        pieces = [
            piece
            for index in kept
            for piece in pieces_of(
                encode_segments(tokenizer, parts[index]),
                rewards[index],
                tokenizer,
                block_size=self.block_size,
                controls=controls,
                rng=rng,
            )
        ]
        return Blocks.of(pieces, self.block_size, tokenizer.pad_id)

    def about_rewards(self, rewards: Sequence[Sequence[float]]) -> str:
        threshold, about = self.objective.threshold, summary_of_rewards(rewards)
        if threshold is None:
            return about
        if self.objective.objective == "filtering":
            rewards = [[sum(part) / len(part)] for part in rewards]
        return f"{about}; {check_two_sides(rewards, threshold):.1%} good at {threshold:g}"

    # ------------------------------------------------------------ the folder

    def fingerprint(self, blocks: Blocks) -> str:
        """Of everything that decides what a step does."""
        objective = {**dataclasses.asdict(self.objective), "reward": None}  # its verdicts are in the blocks
        config = {**dataclasses.asdict(self.config), "micro_batch_tokens": None}  # it changes no result
        said = json.dumps([blocks.fingerprint(), config, objective, self.settings.seed])
        return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()

    def write(self, about: Mapping[str, Any], tokenizer: TextTokenizer) -> None:
        """The record and the tokenizer, before the first step: a killed run has all that it needs to go on."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer.hf.save_pretrained(str(self.folder))
        settings = {field.name: getattr(self.settings, field.name) for field in dataclasses.fields(self.settings)}
        record = {
            "status": "running",
            "about": dict(about),
            "settings": settings,
            "fit": dataclasses.asdict(self.config),
            "objective": {
                field.name: getattr(self.objective, field.name) for field in dataclasses.fields(self.objective)
            },
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        }
        write_json(self.folder / RECORD, record)

    def save(self, found: Pretrained, step: int) -> None:
        """The model as a Hugging Face folder; of a finished run nothing is left to go on from."""
        assert self.folder is not None
        found.policy.save_pretrained(self.folder)
        record = read_record(self.folder)
        record |= {
            "status": "finished" if found.finished else "interrupted",
            "steps": step,
            "validation": found.history,
        }
        write_json(self.folder / RECORD, record)
        if found.finished:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)


def read_record(folder: str | Path) -> dict[str, Any]:
    """What ``pretrain.json`` of a folder holds: settings, fit, objective, status and figures.

    Raises:
        FileNotFoundError: the folder has none.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"'{folder}' is no folder of 'textgen pretrain': it has no {RECORD}")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def positions_of(model: PreTrainedModel) -> int | None:
    """How many positions a model has; None where there is no end."""
    found: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found
