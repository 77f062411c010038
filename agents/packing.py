"""Several completions of one prompt in one row, so that a training forward encodes the prompt once.

A row is ``prompt, completion 1, completion 2, …``; each completion's positions go on from the prompt's, and the
attention mask lets it see the prompt and itself. Its log-probabilities are those of separate rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where to feed tokens, and where to read the N actions' logits (row-major over the action mask)."""

    input_ids: Tensor
    """(rows, width) int64."""
    position_ids: Tensor
    """(rows, width) int64."""
    attention_mask: Tensor | None
    """(rows, 1, width, width) bool, True where attention may look; None is plain causal attention."""
    select_N: Tensor
    """Indices into the flattened rows: the token before each action."""


def separate(input_ids_BS: Tensor, prompt_lengths_B: Tensor, action_mask_BT: Tensor) -> Places:
    """One row an episode. Right padding under causal attention needs no mask."""
    batch, width = input_ids_BS.shape
    rows_N, steps_N = action_mask_BT.nonzero(as_tuple=True)
    select_N = rows_N * width + prompt_lengths_B[rows_N] - 1 + steps_N
    return Places(input_ids_BS, torch.arange(width, device=input_ids_BS.device).expand(batch, -1), None, select_N)


def packed(input_ids_BS: Tensor, prompt_lengths_B: Tensor, action_mask_BT: Tensor, groups_B: Tensor) -> Places:
    """One row a prompt: episodes of the same group share it.

    The last action of a completion is predicted but never fed, so it takes no place.
    """
    device = input_ids_BS.device
    fed_B = action_mask_BT.sum(-1) - 1
    _, row_B = torch.unique(groups_B, return_inverse=True)
    count = int(row_B.max()) + 1
    # Where each completion begins in its row: what the earlier ones of its row take.
    order = torch.argsort(row_B, stable=True)
    before = fed_B[order].cumsum(0) - fed_B[order]
    first_of_row = torch.searchsorted(row_B[order], torch.arange(count, device=device))
    offset_B = torch.empty_like(fed_B)
    offset_B[order] = before - before[first_of_row][row_B[order]]
    prompt_R = prompt_lengths_B[order][first_of_row]
    used_R = prompt_R + torch.zeros_like(prompt_R).index_add(0, row_B, fed_B)
    width = int(used_R.max())

    input_ids = torch.zeros((count, width), dtype=torch.long, device=device)
    position_ids = torch.zeros_like(input_ids)
    segments = torch.full_like(input_ids, -1)  # 0 the prompt, 1 + b the completion of episode b, -1 padding
    columns = torch.arange(width, device=device)
    is_prompt = columns < prompt_R[:, None]
    leaders = order[first_of_row]
    prompt_width = min(width, input_ids_BS.shape[1])
    input_ids[:, :prompt_width] = input_ids_BS[leaders, :prompt_width] * is_prompt[:, :prompt_width]
    position_ids[:] = columns * is_prompt
    segments[is_prompt] = 0
    episode_N, step_N = action_mask_BT.nonzero(as_tuple=True)
    fed_N = step_N < fed_B[episode_N]
    episode, step = episode_N[fed_N], step_N[fed_N]
    at = (row_B[episode], prompt_lengths_B[episode] + offset_B[episode] + step)
    input_ids[at] = input_ids_BS[episode, prompt_lengths_B[episode] + step]
    position_ids[at] = prompt_lengths_B[episode] + step
    segments[at] = episode + 1

    causal = columns[:, None] >= columns
    shared = segments[:, None, :] == 0
    own = segments[:, :, None] == segments[:, None, :]
    attention_mask = (causal & (shared | own))[:, None]
    # The first action is read at the prompt's last token, later ones at the action before them.
    column_N = torch.where(
        step_N == 0,
        prompt_lengths_B[episode_N] - 1,
        prompt_lengths_B[episode_N] + offset_B[episode_N] + step_N - 1,
    )
    return Places(input_ids, position_ids, attention_mask, row_B[episode_N] * width + column_N)


def sharing_pays(prompt_lengths_B: Tensor, action_mask_BT: Tensor, groups_B: Tensor, hidden: int) -> bool:
    """Whether packed rows cost less than separate ones.

    A layer costs about ``12 · hidden`` multiplications a token and unit of width in its projections and one a
    token of context in its attention; packing saves the first and spends the second.
    """
    lengths_B = action_mask_BT.sum(-1)
    _, row_B = torch.unique(groups_B, return_inverse=True)
    count = int(row_B.max()) + 1
    if count == len(groups_B):
        return False
    prompt_R = torch.zeros(count, dtype=torch.long, device=row_B.device)
    prompt_R = prompt_R.scatter_reduce(0, row_B, prompt_lengths_B, "amax")
    used_R = prompt_R.index_add(0, row_B, lengths_B - 1)
    packed_width, width = int(used_R.max()), int((prompt_lengths_B + lengths_B).max())
    return count * packed_width * (12 * hidden + packed_width) < len(groups_B) * width * (12 * hidden + width)
