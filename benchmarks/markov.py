"""A policy against a known chain, exactly: next-word distributions, at every place of a text."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.base import TextAlgorithm
from agents.evaluation import collector_on
from agents.policy import TextPolicy
from textgen_env import TextMDP
from textgen_env.tasks.markov import FIRST_WORD_ID, Array


def written(agent: TextAlgorithm, mdp: TextMDP, samples: int, seed: int) -> Tensor:
    """``input_ids_BS`` of as many texts that the agent draws at its temperature, the prompts of ``mdp`` in turns."""
    prompts = (np.arange(samples) % len(mdp.prompts)).tolist()
    played = collector_on(agent, mdp, samples, seed).collect(samples, prompt_indices=prompts)
    assert played is not None  # nobody abandons it
    return played.input_ids_BS


@torch.no_grad()
def next_word(policy: TextPolicy, input_ids_BS: Tensor, log_probs: Array) -> tuple[Tensor, Tensor]:
    """log q of the policy and log p of the chain, of every word at every place of B texts, (B, T, W) each.

    Args:
        policy: the policy. What it gives to padding and EOS is left out: the task's mask forbids them.
        input_ids_BS: prompts of two words, and T words each.
        log_probs: log p, [W, W, W], or [T, W, W, W] where the chain depends on the place.
    """
    batch, width = input_ids_BS.shape
    places = width - 2
    positions = torch.arange(width).expand(batch, -1)
    select = (torch.arange(batch)[:, None] * width + torch.arange(1, width - 1)).flatten()
    logits_NV, _ = policy(input_ids_BS, positions, select)
    log_q = torch.log_softmax(logits_NV[:, FIRST_WORD_ID:].double(), -1).reshape(batch, places, -1)
    words = (input_ids_BS - FIRST_WORD_ID).numpy()
    tables = np.broadcast_to(log_probs, (places, *log_probs.shape[-3:]))
    return log_q, torch.from_numpy(tables[np.arange(places), words[:, :-2], words[:, 1:-1]])


def divergence(log_q_BTW: Tensor, log_p_BTW: Tensor) -> Tensor:
    """Shape (B,): KL(q‖p) of the next-word distributions, summed over the places of each text, nats.

    Its mean over texts of q is the KL of whole texts (the chain rule).
    """
    return (log_q_BTW.exp() * (log_q_BTW - log_p_BTW)).sum((1, 2))
