"""A policy over any Hugging Face causal language model, with a value head that reads what its LM head reads."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from agents.activation_checkpointing import recomputing
from agents.adapters import has_adapter, merged
from agents.chunked_log_probs import MOST_LOGITS, chunked_log_probs
from agents.compilation import Compilation
from agents.packing import Places, packed, separate, sharing_pays
from agents.plain_head import PlainHead, is_plain, plain_head
from agents.slot_cache import SlotCache
from agents.trajectories import Trajectories

Precision: TypeAlias = Literal["float32", "bf16"]


class TextPolicy(nn.Module):
    """π(token | prefix) and V(prefix) of a causal LM.

    Dropout is never active: an agent's ratios compare the same network with itself, and at p = 0.1 dropout
    alone moves most of them outside a ±0.2 clip range.

    Args:
        model: the causal LM.
        vocab_size: number of actions; logits of ids beyond it (a padded embedding) are cut off.
        temperature: divides the logits, in sampling and in training alike.
        precision: "float32", or "bf16" for autocast with float32 log-softmax and values.
        gradient_checkpointing: recompute each layer's activations in the backward pass instead of keeping them:
            less memory for about a third more time.
        compile: run the layers compiled wherever there is no cache: in an update, not in a rollout.

    Raises:
        ValueError: the model knows fewer tokens than the environment has actions.
    """

    optimizer: torch.optim.Optimizer
    """The agent's, kept here as SB3 does."""
    most_logits: int = MOST_LOGITS
    """Above so many logits in one forward, `score` makes them some rows at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        *,
        temperature: float = 1.0,
        precision: Precision = "float32",
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no language-model head: load it with AutoModelForCausalLM")
        rows, width = head.weight.shape
        if rows < vocab_size:
            raise ValueError(
                f"the model knows {rows} tokens, the environment has {vocab_size} actions: make the environment "
                "with the model's own tokenizer (tokenizer=...), or call model.resize_token_embeddings"
            )
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision must be 'float32' or 'bf16', got {precision!r}")
        self.model = model
        self.vocab_size = vocab_size
        self.temperature = temperature
        self.precision: Precision = precision
        self.gradient_checkpointing = gradient_checkpointing
        # Without drawing weights that are overwritten at once: the global generator is not ours to move.
        self.value_head = nn.utils.skip_init(nn.Linear, width, 1, device=head.weight.device)
        nn.init.zeros_(self.value_head.weight)  # the first advantages are then the rewards themselves
        nn.init.zeros_(self.value_head.bias)
        if head.weight.dtype == torch.float64:
            self.value_head.double()
        # Eager attention adds its mask to the scores. The others take True for "may look", but turn it into the
        # same in every layer: where the scores' type is known it is cheaper done once.
        eager = getattr(model.config.get_text_config(), "_attn_implementation", None) == "eager"
        full = precision == "float32" and head.weight.dtype in (torch.float32, torch.float64)
        self._additive_masks = eager or full
        self._head_is_plain: bool | None = None
        self._compilation = Compilation() if compile else None
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.value_head.weight.device

    def set_training_mode(self, mode: bool) -> None:
        """SB3's switch. Neither mode turns dropout on, so there is nothing to switch."""

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision's context. Entering it around many calls casts the weights once."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        select: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: SlotCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Next-token logits and values at chosen places only.

        The LM head is the widest layer of a small model and its output the largest tensor of any; a hook hands
        it the chosen rows alone, in every architecture, and the value head reads the same rows.

        Args:
            input_ids: (B, S) tokens.
            position_ids: (B, S) explicit positions.
            select: (N,) indices into the flattened B * S places.
            attention_mask: (B, 1, S, K) True where attention may look; None is plain causal attention, which is
                all that right-padded sequences need (what comes after a token cannot change it), and rows of one
                length in a decode step.
            cache: written to, and for a decode step read from.

        Returns:
            Logits (N, vocab_size), divided by the temperature, and values (N,); both at least float32.
        """
        hidden_NH, logits_NV = self.features(
            input_ids, position_ids, select, attention_mask=attention_mask, cache=cache
        )
        with torch.autocast(self.device.type, enabled=False):  # a rollout's own autocast would round values to bf16
            logits_NV, values_N = self.heads(hidden_NH, logits_NV)
        return (logits_NV if self.temperature == 1.0 else logits_NV / self.temperature), values_N

    def features(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        select: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: SlotCache | None = None,
        with_logits: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """What the heads read: hidden states (N, H) and the language model's logits (N, V), or (0, V) without them.

        The other arguments are those of `forward`.
        """
        kept: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept[:] = [args[0].flatten(0, 1).index_select(0, select)]
            return (kept[0] if with_logits else kept[0][:0], *args[1:])

        if attention_mask is None:  # said in full: transformers warns of pad ids when it is not told
            width = input_ids.shape[1] if cache is None else cache.get_mask_sizes(input_ids.shape[1])[0]
            attention_mask = input_ids.new_ones((len(input_ids), width))
        elif self._additive_masks:
            allowed, dtype = attention_mask, self.value_head.weight.dtype
            attention_mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
            attention_mask = attention_mask.masked_fill(~allowed, torch.finfo(dtype).min)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled() and cache is None

        def run() -> Any:
            with (
                self.autocast(),
                self._attention_kernels(),
                recomputing(self.model) if recompute else contextlib.nullcontext(),
            ):
                return self.model(
                    input_ids=input_ids,
                    position_ids=position_ids,
                    attention_mask=attention_mask,
                    past_key_values=cache,
                    use_cache=cache is not None,
                )

        handle = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            compilation = self._compilation if cache is None else None
            output = run() if compilation is None else compilation.run(self.model, run)
        finally:
            handle.remove()
        logits = output.logits[:, : self.vocab_size]
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        return kept[0].to(self.value_head.weight.dtype), logits

    def _attention_kernels(self) -> contextlib.AbstractContextManager[None]:
        """On a GPU all but cuDNN's attention, which plans anew for every shape, and ours change all the time.

        In bf16 with masks its gradients can be NaN, too (pytorch/pytorch#196678).
        """
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

    def heads(self, hidden_NH: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """From the chosen places' hidden states and LM logits to the logits that act, (N, V), and values (N,)."""
        return logits_NV, self.value_head(hidden_NH).squeeze(-1)

    def score_actions(
        self,
        input_ids_BS: Tensor,
        prompt_lengths_B: Tensor,
        action_mask_BT: Tensor,
        *,
        groups_B: Tensor | None = None,
        with_entropy: bool = True,
        entropy_gradient: bool = True,
        allowed_BTV: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, values and entropies of every action of B episodes, in one forward.

        Args:
            input_ids_BS: prompt, then actions, padded on the right with any id.
            prompt_lengths_B: tokens of each prompt.
            action_mask_BT: True where an action was taken.
            groups_B: episodes with the same number have the same prompt, which is then encoded once where that
                pays; the result is the same.
            allowed_BTV: True where an action was allowed: the others have probability 0. None allows all.
            with_entropy: whether entropies are wanted at all (else they are 0).
            entropy_gradient: whether gradients flow through the entropies (else they are for logging only).

        Returns:
            ``log_probs_BT``, ``values_BT``, ``entropies_BT``: 0 outside the mask.
        """
        places = self.places(input_ids_BS, prompt_lengths_B, action_mask_BT, groups_B)
        rows_N, steps_N = action_mask_BT.nonzero(as_tuple=True)
        log_probs_N, values_N, entropies_N = self.score_places(
            places,
            input_ids_BS[rows_N, prompt_lengths_B[rows_N] + steps_N],
            with_entropy=with_entropy,
            entropy_gradient=entropy_gradient,
            allowed_NV=None if allowed_BTV is None else allowed_BTV[rows_N, steps_N],
        )

        def scatter(flat_N: Tensor) -> Tensor:
            return flat_N.new_zeros(action_mask_BT.shape).index_put((rows_N, steps_N), flat_N)

        return scatter(log_probs_N), scatter(values_N), scatter(entropies_N)

    def score_places(
        self,
        places: Places,
        actions_N: Tensor,
        *,
        with_entropy: bool = True,
        entropy_gradient: bool = True,
        allowed_NV: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``log_probs_N``, ``values_N`` and ``entropies_N`` of one action at each of N places, in one forward.

        Where the logits of all places would be large, they are made some rows at a time (`chunked_log_probs`).
        """
        where = (places.input_ids, places.position_ids, places.select_N)
        head = self.head_to_chunk() if len(actions_N) * self.vocab_size > self.most_logits else None
        if head is not None:
            hidden_NH, logits_0V = self.features(*where, attention_mask=places.attention_mask, with_logits=False)
            with torch.autocast(self.device.type, enabled=False):
                _, values_N = self.heads(hidden_NH, logits_0V)
                log_probs_N, entropies_N = chunked_log_probs(
                    hidden_NH,
                    head.weight_VH,
                    head.bias_V,
                    actions_N,
                    temperature=self.temperature,
                    allowed_NV=allowed_NV,
                    dtype=head.dtype,
                    with_entropy=with_entropy,
                    entropy_gradient=entropy_gradient,
                    most_logits=self.most_logits,
                )
            return log_probs_N, values_N, entropies_N
        logits_NV, values_N = self(*where, attention_mask=places.attention_mask)
        if allowed_NV is not None:
            logits_NV = logits_NV.masked_fill(~allowed_NV, -torch.inf)
        log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
        log_probs_N = chosen(log_probs_NV, actions_N)
        if with_entropy:
            with contextlib.nullcontext() if entropy_gradient else torch.no_grad():
                entropies_N = entropy(log_probs_NV)
        else:
            entropies_N = torch.zeros_like(values_N)
        return log_probs_N, values_N, entropies_N

    def head_to_chunk(self) -> PlainHead | None:
        """The language-model head, where its logits may be made some rows at a time: where they are its own alone."""
        if self._head_is_plain is None:
            self._head_is_plain = is_plain(self)
        return plain_head(self) if self._head_is_plain else None

    def score(
        self, episodes: Trajectories, *, with_entropy: bool = True, entropy_gradient: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`score_actions` of a rollout's episodes."""
        return self.score_actions(
            episodes.input_ids_BS,
            episodes.prompt_lengths_B,
            episodes.action_mask_BT,
            groups_B=episodes.prompt_groups_B,
            with_entropy=with_entropy,
            entropy_gradient=entropy_gradient,
            allowed_BTV=episodes.allowed_BTV,
        )

    def places(
        self, input_ids_BS: Tensor, prompt_lengths_B: Tensor, action_mask_BT: Tensor, groups_B: Tensor | None
    ) -> Places:
        """Where to read every action's prediction, with shared prompts encoded once where that pays."""
        if groups_B is not None and sharing_pays(
            prompt_lengths_B, action_mask_BT, groups_B, self.value_head.in_features
        ):
            return packed(input_ids_BS, prompt_lengths_B, action_mask_BT, groups_B)
        return separate(input_ids_BS, prompt_lengths_B, action_mask_BT)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``AutoModelForCausalLM.from_pretrained`` loads (the value head is not part of it).

        An adapter (LoRA) is merged into a copy of the model: the folder needs no peft, and this policy goes on with
        its own. ``policy.model.save_pretrained(folder)`` writes the adapter alone.
        """
        model = merged(self.model) if has_adapter(self.model) else self.model
        model.save_pretrained(str(folder))


def chosen(log_probs_NV: Tensor, actions_N: Tensor) -> Tensor:
    """log π(action) of each row, shape (N,)."""
    return log_probs_NV.gather(-1, actions_N[:, None]).squeeze(-1)


def entropy(log_probs_NV: Tensor) -> Tensor:
    """The entropy of each row's distribution in nats, shape (N,)."""
    # 0 * -inf of a forbidden action is 0, not NaN; exp(-10,000) is 0 in every precision.
    return -(log_probs_NV.exp() * log_probs_NV.clamp(min=-10_000)).sum(-1)
