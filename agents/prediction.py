"""``predict`` for everyone else's loops: an observation in, the next token out, the cache as recurrent state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.decoder import Decoder, decoding, sample_actions
from agents.policy import TextPolicy


class PrefixState:
    """What ``predict`` hands back as ``state``: the cache, and the prefixes it holds.

    SB3's ``episode_start`` flag is not to be trusted (`evaluate_policy` leaves it up once an environment's
    quota is met), so a row continues if, and only if, its new prefix extends the one the cache holds.
    """

    def __init__(self, policy: TextPolicy, rows: int, capacity: int) -> None:
        self.decoder = Decoder(policy, rows, capacity)
        self.input_ids = np.zeros((rows, capacity), dtype=np.int64)
        self.lengths = np.zeros(rows, dtype=np.int64)

    def advance(self, input_ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        """Bring every row to its prefix: one more token where it continues, a prefill where it does not."""
        columns = np.arange(input_ids.shape[1])
        held = (columns < self.lengths[:, None]) & (input_ids != self.input_ids)
        continues = (self.lengths > 0) & (lengths == self.lengths + 1) & ~held.any(-1)
        if continues.any():
            last = input_ids[np.arange(len(lengths)), np.maximum(lengths - 1, 0)]
            self.decoder.append(torch.from_numpy(last).to(self.decoder.policy.device))
        fresh = np.flatnonzero(~continues)
        if len(fresh):
            prompts = [torch.from_numpy(input_ids[row, : lengths[row]].copy()) for row in fresh]
            self.decoder.start(fresh.tolist(), prompts)
        self.input_ids, self.lengths = input_ids.copy(), lengths.copy()


def predict(
    policy: TextPolicy,
    observation: dict[str, npt.NDArray[Any]],
    state: Any,
    *,
    deterministic: bool,
    generator: torch.Generator,
    action_masks: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[np.int64], PrefixState]:
    """The next token of every row, and the state to hand in with the next observation.

    Args:
        policy: the policy.
        observation: ``input_ids`` and ``attention_mask``, of shape (rows, L) or, for one environment, (L,).
        state: what the previous call returned, or None.
        deterministic: the most likely token instead of a draw.
        generator: draws the tokens.
        action_masks: of shape (rows, V) or, for one environment, (V,): true where a token is allowed. None allows all.

    Raises:
        ValueError: an observation without a prefix, masks of another shape, or a row that allows nothing.
    """
    input_ids = np.atleast_2d(observation["input_ids"]).astype(np.int64, copy=False)
    lengths = np.atleast_2d(observation["attention_mask"]).sum(-1, dtype=np.int64)
    if (lengths == 0).any():
        raise ValueError("an observation without a single token cannot be continued")
    allowed_NV = None
    if action_masks is not None:
        masks = np.atleast_2d(action_masks).astype(np.bool_)
        if masks.shape != (len(lengths), policy.vocab_size):
            raise ValueError(
                f"action_masks must have shape ({len(lengths)}, {policy.vocab_size}), got {np.shape(action_masks)}"
            )
        if not masks.any(-1).all():
            raise ValueError(f"action_masks allow no token at all in row {int(masks.any(-1).argmin())}")
        allowed_NV = torch.from_numpy(masks).to(policy.device)
    if not isinstance(state, PrefixState) or state.input_ids.shape != input_ids.shape:
        state = PrefixState(policy, *input_ids.shape)
    with decoding(policy):
        state.advance(input_ids, lengths)
        logits, _ = state.decoder.step(allowed_NV)
        actions = logits.argmax(-1) if deterministic else sample_actions(torch.log_softmax(logits, -1), generator)
    tokens = actions.cpu().numpy()
    return (tokens if np.ndim(observation["input_ids"]) == 2 else tokens[0]), state
