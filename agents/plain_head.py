"""Language-model heads that are one matrix: found out by trying, since nothing in a model says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from agents.policy import TextPolicy

_LOGIT = 1000.0
"""What the trial's logits reach: a cap of 30 on logits of 1 would hardly be seen."""


@dataclass(frozen=True)
class PlainHead:
    """The logits that act are ``W h + b`` and no more."""

    weight_VH: Tensor
    bias_V: Tensor | None
    dtype: torch.dtype
    """Of the product."""


def plain_head(policy: TextPolicy) -> PlainHead | None:
    """The head of the policy's actions as it stands, None where it is not one plain `nn.Linear`.

    What a subclass of it adds may be 0 today (a fresh adapter) and not tomorrow, and of a sharded weight only a part is
    here. What the model does to the logits `is_plain` tells.
    """
    head = policy.model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return None
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    dtype = weight.dtype
    if len(weight) > policy.vocab_size:
        weight, bias = weight[: policy.vocab_size], None if bias is None else bias[: policy.vocab_size]
    return PlainHead(weight, bias, torch.bfloat16 if policy.precision == "bf16" and dtype == torch.float32 else dtype)


@torch.no_grad()
def is_plain(policy: TextPolicy) -> bool:
    """Whether the policy's logits are those of its `plain_head`: not scaled, capped or exchanged afterwards.

    A forward of four tokens, in which the head is handed hidden states of its own.
    """
    plain = plain_head(policy)
    if plain is None:
        return False
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(4, plain.weight_VH.shape[1], generator=generator).to(plain.weight_VH)
    hidden_NH *= _LOGIT / (hidden_NH @ plain.weight_VH.T).abs().max().clamp(min=1e-6)
    head = policy.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: (hidden_NH[None].to(args[0].dtype), *args[1:]))
    try:
        places_N = torch.arange(len(hidden_NH), device=policy.device)
        hidden_NH, logits_NV = policy.features(torch.zeros_like(places_N)[None], places_N[None], places_N)
    finally:
        hook.remove()
    bias_V = None if plain.bias_V is None else plain.bias_V.to(plain.dtype)
    expected_NV = functional.linear(hidden_NH.to(plain.dtype), plain.weight_VH.to(plain.dtype), bias_V)
    tolerance = _LOGIT * max(1e-4, 4 * torch.finfo(plain.dtype).eps)
    same = torch.allclose(logits_NV, expected_NV.to(logits_NV.dtype), rtol=0, atol=tolerance)
    return same and policy.heads(hidden_NH, logits_NV)[0] is logits_NV
