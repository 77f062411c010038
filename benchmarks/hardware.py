"""What a device can do, measured, and what a token step and an update ask of it, counted.

Rates are measured in the run that they are used in, on random numbers: a data sheet's are not reached, and a product of
zeros runs faster than any other. A copy's bytes are counted twice, read and written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache

from agents.chunked_log_probs import MOST_LOGITS, chunked_log_probs
from agents.cuda_graph import Graphs
from agents.decoder import Decoder, decoding
from benchmarks.measure import Contender, peak_memory_mb
from benchmarks.workload import Workload

_FLOAT32, _BF16 = 4, 2

# --- what the device can do ---------------------------------------------------------------------------------


def copying(device: str, num_bytes: int, times: int = 4) -> Contender:
    """Copies from memory to memory of the device; returns bytes read plus bytes written."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)

    def run() -> int:
        for _ in range(times):
            target.copy_(source)
        return 2 * num_bytes * times

    return run


def multiplying(device: str, width: int, times: int = 10) -> Contender:
    """Products of two square bf16 matrices; returns floating-point operations, 2 width³ each."""
    left, right = (torch.randn(width, width, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)

    def run() -> int:
        for _ in range(times):
            torch.mm(left, right, out=product)
        return 2 * width**3 * times

    return run


# --- what is asked of it ------------------------------------------------------------------------------------


def step_bytes(model: PreTrainedModel, sizes: Workload) -> float:
    """The fewest bytes a token step can read in bf16, on average over a completion: every weight and every key once.

    ``2 (W + 2 L d_kv Σ_rows keys)``: W the weights, of a table that is only looked up (positions, untied tokens) one
    row a sequence; d_kv the key/value heads' width; the step t of T attends to P + t − 1 keys. Activations, logits
    and all that is written are left out.
    """
    looked_up = _tables(model)
    weights = sum(
        sizes.rows * weight.shape[1] if id(weight) in looked_up else weight.numel() for weight in model.parameters()
    )
    keys = sizes.rows * (sizes.prompt_tokens + (sizes.new_tokens - 1) / 2)
    kv_width = (sizes.kv_heads or sizes.heads) * (sizes.width // sizes.heads)
    return _BF16 * (weights + 2 * sizes.layers * kv_width * keys)


def update_flops(model: PreTrainedModel, sizes: Workload) -> float:
    """Floating-point operations that one epoch's forward and backward need on whole sequences of S = P + T tokens.

    ``6 (N tokens + V d actions) + 12 L d Σ_sequences S (S + 1) / 2``: two operations a weight in the forward and four
    in the backward (Kaplan et al. 2020, §2.1; Chowdhery et al. 2022, "PaLM", appendix B), N the matrices without tables
    and head, and the head's V d only where an action was taken; then attention's two products, with the pairs that
    the causal mask leaves: half of PaLM's 12 L d S a token. What is computed twice to save memory is not counted.
    """
    head = model.get_output_embeddings().weight
    looked_up = _tables(model)
    matrices = sum(
        weight.numel()
        for weight in model.parameters()
        if weight.ndim == 2 and weight is not head and id(weight) not in looked_up
    )
    length = sizes.prompt_tokens + sizes.new_tokens
    products = matrices * sizes.rows * length + head.numel() * sizes.tokens
    pairs = sizes.rows * length * (length + 1) / 2
    return 6 * products + 12 * sizes.layers * sizes.width * pairs


def _tables(model: PreTrainedModel) -> set[int]:
    """Weights that are looked up, and not multiplied with."""
    head = model.get_output_embeddings().weight
    embeddings = (module.weight for module in model.modules() if isinstance(module, nn.Embedding))
    return {id(weight) for weight in embeddings if weight is not head}


# --- decoding without anything around it --------------------------------------------------------------------


def bf16_copy(model: PreTrainedModel) -> Any:
    """The model with all its weights in bf16, as `from_pretrained(dtype=torch.bfloat16)` would give it."""
    return copy.deepcopy(model).to(torch.bfloat16)


def prompts_into(decoder: Decoder, sizes: Workload) -> None:
    """Random prompts in all of the decoder's rows, which reads the policy's weights as they are now."""
    with decoding(decoder.policy):
        decoder.clear()
        decoder.start(range(sizes.rows), list(sizes.prompt_ids(sizes.rows)))


def token_steps(decoder: Decoder, sizes: Workload, generator: torch.Generator) -> int:
    """A token of every row, as often as there are new tokens, and nobody who looks at them; returns the steps."""
    with decoding(decoder.policy):
        for _ in range(sizes.new_tokens):
            decoder.act(generator)
    return sizes.new_tokens


class BareSteps:
    """One-token forwards of the model in bf16 with transformers' `StaticCache`, as one CUDA graph on CUDA.

    No draw, no value, no log-probability: what any decoding of this model with this library has to launch.

    Args:
        model: in any precision; a bf16 copy is used.
        sizes: rows, and tokens a row.
    """

    def __init__(self, model: PreTrainedModel, sizes: Workload) -> None:
        self.model = bf16_copy(model)
        self.steps = sizes.new_tokens
        capacity = sizes.prompt_tokens + sizes.new_tokens
        self.cache = StaticCache(config=self.model.config, max_cache_len=capacity)
        device = self.model.device
        tokens_N1 = torch.full((sizes.rows, 1), 2, device=device)
        positions_N1 = torch.full((sizes.rows, 1), capacity - 1, device=device)
        mask = torch.ones((1, 1, 1, capacity), dtype=torch.bool, device=device)

        def step() -> Tensor:
            found: Tensor = self.model(
                input_ids=tokens_N1,
                position_ids=positions_N1,
                attention_mask=mask,  # ready, so that nothing is asked of the host
                past_key_values=self.cache,
                use_cache=True,
            ).logits
            return found

        with torch.no_grad():
            self._step: Callable[[], Tensor] = Graphs(device).captured(step, state=())
        self.is_graph = self._step is not step
        """Whether it is one; on CUDA it may be a sequence of launches that the host cannot keep up with."""

    def rewind(self) -> None:
        """An empty cache again; it has no room for more than one `run`."""
        self.cache.reset()

    @torch.no_grad()
    def run(self) -> int:
        """As many steps as there are new tokens; returns their number."""
        for _ in range(self.steps):
            self._step()
        return self.steps


# --- memory -------------------------------------------------------------------------------------------------


def log_probs_memory_mb(device: str, width: int, vocab_size: int, places: int) -> float:
    """What log-probabilities, entropies and their gradients take at their peak, beyond what goes in."""
    hidden_NH = torch.randn(places, width, device=device, requires_grad=True)
    weight_VH = torch.randn(vocab_size, width, device=device, requires_grad=True)
    actions_N = torch.randint(vocab_size, (places,), device=device)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) / 1024**2 if on_gpu else peak_memory_mb()
    log_probs_N, entropies_N = chunked_log_probs(hidden_NH, weight_VH, None, actions_N, dtype=torch.bfloat16)
    (log_probs_N + entropies_N).sum().backward()
    return peak_memory_mb(device) - before


def log_probs_bound_mb(width: int, vocab_size: int, places: int) -> float:
    """What they may take: five chunks of logits in float32, three heads (a gradient and two casts), two hidden states.

    It does not grow with places × vocabulary.
    """
    logits = 5 * min(MOST_LOGITS, places * vocab_size)
    return _FLOAT32 * (logits + 3 * vocab_size * width + 2 * places * width) / 1024**2
