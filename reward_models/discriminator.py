"""A reward that is learned against the policy: how much more likely a completion is in the corpus than in its samples.

A causal transformer reads prompt and completion and says, after every token, whether the text so far comes from the
corpus p or from the policy q. Trained by cross-entropy on as many texts of each, its best logit is the log density
ratio of the prefix (Goodfellow et al. 2014, proposition 1)::

    l_t = log p(x_1 … x_t | prompt) − log q(x_1 … x_t | prompt)

which adds up over tokens, and so is made here: ``l_t = s_1 + … + s_t``, where ``s_t`` estimates
``log p(x_t | before) − log q(x_t | before)``. It is the score, without softmax, that a causal language model's output
layer gives to x_t at the token before: one forward scores every token that could come, as in the policy itself. (In
trials on MatchCorpus a classifier that reads x_t and answers with one number learned far more slowly.) A completion
earns ``f(l_T) − f(0)``:

=================  ==================  ====================================================
form               f(l)
=================  ==================  ====================================================
``logit``          l                   AIRL (Fu et al. 2018): in expectation −KL(q‖p)
``log_real``       log σ(l)            SeqGAN (Yu et al. 2017), the non-saturating loss
``minus_log_fake`` −log(1 − σ(l))      GAIL (Ho & Ermon 2016)
=================  ==================  ====================================================

paid by the token, ``f(l_t) − f(l_{t−1})``, or at the end. Differences of a potential leave the optimum where it is
(Ng et al. 1999); paying the level f(l_t) at every token (as ScratchGAN does, de Masson d'Autume et al. 2019, whose
causal discriminator this is) pays for length as well.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from reward_models.composite import Composable
from reward_models.reservoir import Reservoir
from textgen_env.lookup import did_you_mean
from textgen_env.reward import RewardError
from textgen_env.tokenizer import TextTokenizer

Form: TypeAlias = Literal["logit", "log_real", "minus_log_fake"]
Credit: TypeAlias = Literal["token", "terminal"]
Tokens: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt, and of a completion."""

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda logits: logits,
    "log_real": nn.functional.logsigmoid,
    "minus_log_fake": nn.functional.softplus,
}
_CREDITS = ("token", "terminal")


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Options of a `Discriminator`."""

    form: Form = "logit"
    """f, see the module."""
    credit: Credit = "token"
    """Pay every token its share, or the last one all."""
    clip: float = 10.0
    """Logits are cut to ± this, in nats, before they are paid."""
    centre: bool = True
    """Take the mean reward of the policy's latest samples off every completion, at its end."""
    learning_rate: float = 1e-3
    """AdamW's step size."""
    weight_decay: float = 0.1
    """Decoupled weight decay: the corpus is small and can be memorised."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    batch_size: int = 128
    """Texts of each kind an optimiser step."""
    replay_share: float = 0.25
    """Share of the policy's side of a batch that is drawn from its older samples."""
    replay_size: int = 4096
    """Samples that are kept: a uniform draw of all that were seen."""

    def __post_init__(self) -> None:
        for name, value, known in (("form", self.form, tuple(FORMS)), ("credit", self.credit, _CREDITS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; {did_you_mean(str(value), known)}")
        for name in ("clip", "learning_rate", "max_grad_norm", "batch_size", "replay_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.replay_share < 1:
            raise ValueError(f"replay_share must lie in [0, 1), got {self.replay_share}")


def discriminator_loss(
    real_logits_BT: Tensor, real_mask_BT: Tensor, fake_logits_BT: Tensor, fake_mask_BT: Tensor
) -> Tensor:
    """Cross-entropy of every prefix: ``Σ −log σ(l)`` of real ones, ``Σ −log(1 − σ(l))`` of fake ones, a token.

    Each *text* weighs the same on either side (the token sums are divided by the number of texts, then both by one
    mean length): a mean over the tokens of each side would add the log ratio of the mean lengths to every logit.
    """
    real = (nn.functional.softplus(-real_logits_BT) * real_mask_BT).sum() / len(real_mask_BT)
    fake = (nn.functional.softplus(fake_logits_BT) * fake_mask_BT).sum() / len(fake_mask_BT)
    tokens = real_mask_BT.sum() / len(real_mask_BT) + fake_mask_BT.sum() / len(fake_mask_BT)
    return (real + fake) / tokens


class Discriminator(Composable):
    """The reward, and the network behind it.

    It reads token ids, so it belongs to one tokenizer. Scoring changes nothing; `fit` does.

    Args:
        tokenizer: the environment's.
        model: a causal language model: a transformers config (fresh weights, drawn with ``seed``), a hub name, a local
            folder or an object. It gets an output layer of its own, of zeros: at first every text earns 0.
        config: the options.
        seed: seeds fresh weights, the batches and the replay. No global generator is touched.
        device: "auto", "cpu", "cuda", …
        name: its key in ``info["reward"]``.

    Attributes:
        steps: optimiser steps taken.
        scored: texts that a caller had scored.
        centre: what is taken off every completion.

    Raises:
        TypeError: the model is none of these.
        ValueError: the model knows fewer tokens than the tokenizer.
    """

    kind: Literal["terminal"] = "terminal"
    """Asked about finished texts; it answers with one reward a token."""
    bounds = None

    def __init__(
        self,
        tokenizer: TextTokenizer,
        model: PreTrainedConfig | PreTrainedModel | str | Path,
        config: DiscriminatorConfig | None = None,
        *,
        seed: int = 0,
        device: str | torch.device = "auto",
        name: str = "discriminator",
    ) -> None:
        self.name = name
        self.config = config or DiscriminatorConfig()
        self.tokenizer = tokenizer
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Any = _load(model, seed)
        known = loaded.get_input_embeddings().weight.shape[0]
        if known < tokenizer.vocab_size:
            raise ValueError(
                f"the model knows {known} tokens, the tokenizer {tokenizer.vocab_size}: take the environment's"
            )
        if not getattr(loaded.config, "is_discriminator", False):
            _new_output_layer(loaded)
        self.model: PreTrainedModel = loaded.to(device).eval()  # without dropout, in training too
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            betas=(0.5, 0.95),
        )
        self.replay: Reservoir[Tokens] = Reservoir(self.config.replay_size, seed)
        self.steps = 0
        self.scored = 0
        self.centre = 0.0
        self._generator = np.random.default_rng([seed, 0])

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.model.device

    # ---------------------------------------------------------------- the reward

    def __call__(self, completion_ids: Sequence[Sequence[int]], prompts: Sequence[str], **_: Any) -> list[list[float]]:
        """One reward a token of B completions; an answer's total is ``f(l_T) − f(0) − centre``."""
        texts = [
            (self.tokenizer.encode_prompt(prompt).tolist(), ids)
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        self.scored += len(texts)
        return self.rewards(texts, self.centre)

    def rewards(self, texts: Sequence[Tokens], centre: float = 0.0) -> list[list[float]]:
        """One reward a token of each text, in order."""
        rewards: list[list[float]] = [[]] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index][0]) + len(texts[index][1]))
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            with torch.no_grad():
                logits_BT, mask_BT = self.logits([texts[row] for row in rows])
            rewards_BT = token_rewards(logits_BT, mask_BT, self.config.form, self.config.credit, self.config.clip)
            last_B = mask_BT.sum(-1) - 1
            rewards_BT[torch.arange(len(rows), device=last_B.device), last_B] -= centre
            for row, values, length in zip(rows, rewards_BT.tolist(), mask_BT.sum(-1).tolist(), strict=True):
                rewards[row] = values[:length]
        return rewards

    def logits(self, texts: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """``l_t`` of every prefix of B texts, with gradient, and the mask of their tokens, both (B, T)."""
        prompt_B = torch.tensor([len(prompt) for prompt, _ in texts])
        length_B = torch.tensor([len(completion) for _, completion in texts])
        width, steps = int((prompt_B + length_B).max()), int(length_B.max())
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None and width > positions:
            raise ValueError(f"a text of {width} tokens: the discriminator's model has {positions} positions")
        input_ids_BS = torch.zeros((len(texts), width), dtype=torch.long)
        for row, (prompt, completion) in enumerate(texts):
            input_ids_BS[row, : len(prompt)] = torch.as_tensor(prompt)
            input_ids_BS[row, len(prompt) : len(prompt) + len(completion)] = torch.as_tensor(completion)
        input_ids_BS, prompt_B = input_ids_BS.to(self.device), prompt_B.to(self.device)
        mask_BT = torch.arange(steps, device=self.device) < length_B.to(self.device)[:, None]
        # Padding on the right is never seen by what stands before it. All ones says so, and silences a warning.
        scores_BSV = self.model(input_ids=input_ids_BS, attention_mask=torch.ones_like(input_ids_BS)).logits
        taken_BS = scores_BSV[:, :-1].float().gather(-1, input_ids_BS[:, 1:, None]).squeeze(-1)
        at_BT = (prompt_B[:, None] - 1 + torch.arange(steps, device=self.device)).clamp(max=width - 2)
        return (taken_BS.gather(1, at_BT) * mask_BT).cumsum(-1) * mask_BT, mask_BT

    # ---------------------------------------------------------------- learning

    def fit(self, real: Sequence[Tokens], fake: Sequence[Tokens], steps: int) -> dict[str, float]:
        """Some optimiser steps on the corpus against the policy's samples, fresh and replayed; then re-centre.

        The prompts of both should be distributed alike (the same ones, best), or it learns to tell the prompts apart.

        Args:
            real: texts of the corpus.
            fake: the policy's own, of now; they go into the replay afterwards.
            steps: optimiser steps.

        Returns:
            Means over the steps, by name: ``loss`` (nats a token), ``accuracy_real``, ``accuracy_fake`` (of whole
            texts), ``grad_norm``; and ``reward_fake``, what the fresh samples now earn before centring.

        Raises:
            ValueError: one side is empty, or ``steps`` below 1.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not real or not fake:
            raise ValueError(
                f"a discriminator compares two sides: got {len(real)} real texts and {len(fake)} fake ones"
            )
        rng, size = self._generator, self.config.batch_size
        replayed = round(self.config.replay_share * size) if len(self.replay) else 0
        real_rows, fake_rows = _shuffled(len(real), rng), _shuffled(len(fake), rng)
        found: list[dict[str, float]] = []
        for _ in range(steps):
            fakes = [fake[next(fake_rows)] for _ in range(size - replayed)] + self.replay.draw(replayed, rng)
            found.append(self.fit_step([real[next(real_rows)] for _ in range(size)], fakes))
        self.replay.extend(fake)
        mean = float(np.mean([sum(rewards) for rewards in self.rewards(fake)]))
        if self.config.centre:
            self.centre = mean
        return {name: float(np.mean([step[name] for step in found])) for name in found[0]} | {"reward_fake": mean}

    def fit_step(self, real: Sequence[Tokens], fake: Sequence[Tokens]) -> dict[str, float]:
        """One optimiser step on `discriminator_loss`."""
        logits_BT, mask_BT = self.logits([*real, *fake])
        sides = (logits_BT[: len(real)], mask_BT[: len(real)], logits_BT[len(real) :], mask_BT[len(real) :])
        loss = discriminator_loss(*sides)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        last_B = logits_BT.detach().gather(1, mask_BT.sum(-1, keepdim=True) - 1).squeeze(-1)
        return {
            "loss": float(loss.detach()),
            "accuracy_real": float((last_B[: len(real)] > 0).float().mean()),
            "accuracy_fake": float((last_B[len(real) :] <= 0).float().mean()),
            "grad_norm": float(norm),
        }

    # ---------------------------------------------------------------- on disk

    def state(self) -> dict[str, Any]:
        """All it has learned and learns with (optimiser, replay, generator): what an agent saves with itself."""
        buffer = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], buffer)
        return {
            "weights": buffer.getvalue(),
            "replay": self.replay.state(),
            "generator": self._generator.bit_generator.state,
            "centre": self.centre,
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, bit for bit on the same device.

        Raises:
            RewardError: it is that of another reward, or of a discriminator with another model; nothing is changed.
        """
        if state.keys() != {"weights", "replay", "generator", "centre", "steps"}:
            raise RewardError(f"the saved state is not one of '{self.name}': make the environment with the same reward")
        model, optimizer = torch.load(io.BytesIO(state["weights"]), map_location=self.device, weights_only=True)
        shapes, own = (
            {name: tuple(weight.shape) for name, weight in weights.items()}
            for weights in (model, self.model.state_dict())
        )
        if shapes != own:
            raise RewardError(f"the saved state of '{self.name}' has weights of other shapes: make it with that model")
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.replay.load_state(state["replay"])
        self._generator.bit_generator.state = state["generator"]
        self.centre, self.steps = state["centre"], state["steps"]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face causal-LM folder, with the options and the centre beside the weights.

        The optimiser and the replay are not kept: what is loaded scores alike, and begins both anew. An agent that
        is saved keeps all (`state`).
        """
        self.model.save_pretrained(folder)
        kept = {"config": asdict(self.config), "centre": self.centre, "steps": self.steps, "name": self.name}
        (Path(folder) / _OPTIONS).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, tokenizer: TextTokenizer, *, seed: int = 0, device: str | torch.device = "auto"
    ) -> Discriminator:
        """What `save_pretrained` wrote.

        Raises:
            OSError: the folder is not there, or not one of a discriminator.
        """
        kept = json.loads((Path(folder) / _OPTIONS).read_text(encoding="utf-8"))
        loaded = cls(
            tokenizer, folder, DiscriminatorConfig(**kept["config"]), seed=seed, device=device, name=kept["name"]
        )
        loaded.centre, loaded.steps = kept["centre"], kept["steps"]
        return loaded


_OPTIONS = "discriminator.json"


def token_rewards(logits_BT: Tensor, mask_BT: Tensor, form: Form, credit: Credit, clip: float) -> Tensor:
    """``f(l_t) − f(l_{t−1})`` at every token, or their sum ``f(l_T) − f(0)`` at the last; 0 outside the mask."""
    f = FORMS[form]
    levels_BT = f(logits_BT.clamp(-clip, clip))
    start_B1 = f(torch.zeros_like(logits_BT[:, :1]))
    paid_BT = (levels_BT - torch.cat([start_B1, levels_BT[:, :-1]], dim=-1)) * mask_BT
    if credit == "token":
        return paid_BT
    is_last_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device) == mask_BT.sum(-1, keepdim=True) - 1
    return paid_BT.sum(-1, keepdim=True) * is_last_BT


def _load(source: Any, seed: int) -> PreTrainedModel:
    if isinstance(source, PreTrainedModel):
        return source
    if isinstance(source, (str, Path)):
        return AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32)
    if not isinstance(source, PreTrainedConfig):
        raise TypeError(
            f"model must be a transformers config, a hub name, a folder or a causal LM, not {type(source).__name__}"
        )
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator
        torch.random.manual_seed(seed)
        return AutoModelForCausalLM.from_config(source)


def _new_output_layer(model: Any) -> None:
    """Zeros in place of the language model's output layer, tied to its embeddings no longer."""
    old = model.get_output_embeddings()
    rows, width = old.weight.shape
    layer = nn.utils.skip_init(nn.Linear, width, rows, bias=False, device=old.weight.device, dtype=old.weight.dtype)
    nn.init.zeros_(layer.weight)
    model.config.tie_word_embeddings = False
    model.config.is_discriminator = True
    model.set_output_embeddings(layer)


def _shuffled(count: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(count).tolist()
