"""Documents as blocks of equal length: encoded, packed so that few are cut, and kept apart inside a block.

A document is read as ``start, t₁, …, tₙ`` and predicted as ``t₁, …, tₙ, EOS``; the start token is the tokenizer's
BOS, or else its EOS, as an unconditional generation begins. A document longer than a block is cut into pieces, each of
which starts anew at position 0: nothing attends across pieces, neither to another document nor to an earlier part.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.micro_batches import consecutive
from agents.pretraining.objectives import with_control_tokens
from textgen_env import TextTokenizer

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Controls:
    """The control tokens of conditional training."""

    good: int
    """Id of the token before segments whose reward reaches the threshold."""
    bad: int
    """Id of the token before the others."""
    threshold: float
    drop: float = 0.0
    """Share of the segments that get none, so that the model can also write without."""


@dataclass(frozen=True)
class Piece:
    """A document, or as much of it as fits into a block: T tokens that are read, and the T that follow them."""

    inputs_T: npt.NDArray[np.int64]
    targets_T: npt.NDArray[np.int64]
    rewards_T: npt.NDArray[np.float32]
    """The reward of each target's segment."""


def encode_segments(tokenizer: TextTokenizer, segments: Sequence[str]) -> list[list[int]]:
    """The token ids of a document's segments: those of the whole text, each where it begins.

    What looks like a special token in the text is text: "<|eos|>" ends no document, and nobody can write a control
    token into one.

    Raises:
        ValueError: the tokenizer cannot say where its tokens lie, or has none for a word.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    try:
        if len(segments) == 1:
            return [tokenizer.hf(segments[0], **options).input_ids]
        if not tokenizer.hf.is_fast:
            raise ValueError(f"{type(tokenizer.hf).__name__} does not say where tokens lie: use segments='document'")
        encoded = tokenizer.hf("".join(segments), return_offsets_mapping=True, **options)
    except Exception as error:  # tokenizers raises nothing more specific
        if "Missing [UNK]" not in str(error):
            raise
        raise ValueError(f"the tokenizer has no token for a word of {''.join(segments)[:80]!r}") from error
    ends = list(itertools.accumulate(map(len, segments)))
    parts: list[list[int]] = [[] for _ in segments]
    for token, (start, _) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        parts[min(bisect.bisect_right(ends, start), len(ends) - 1)].append(token)
    return parts


def pieces_of(
    segments: Sequence[Sequence[int]],
    rewards: Sequence[float],
    tokenizer: TextTokenizer,
    *,
    block_size: int,
    controls: Controls | None = None,
    rng: np.random.Generator | None = None,
) -> list[Piece]:
    """A document's pieces, each of at most ``block_size`` tokens.

    Args:
        segments: token ids of each.
        rewards: of each.
        tokenizer: says what a document starts and ends with.
        block_size: the length of a block.
        controls: with them each segment follows its control token, a piece that begins within a segment too.
        rng: draws the segments that get none; needed where ``controls.drop`` is above 0.
    """
    eos, bos = tokenizer.eos_ids[0], tokenizer.hf.bos_token_id
    tokens: list[int] = []
    token_rewards: list[float] = []
    announced: list[int | None] = []  # the control token that each token stands under
    for ids, reward in zip(segments, rewards, strict=True):
        marked, control = list(ids), None
        if controls is not None and not (controls.drop and rng is not None and rng.random() < controls.drop):
            marked = with_control_tokens(
                [ids], [reward], threshold=controls.threshold, good=controls.good, bad=controls.bad
            )
            control = marked[0]
        tokens += marked
        token_rewards += [reward] * len(marked)
        announced += [control] * len(marked)
    targets_T = np.array([*tokens, eos], dtype=np.int64)
    inputs_T = np.array([eos if bos is None else bos, *tokens], dtype=np.int64)
    rewards_T = np.array([*token_rewards, rewards[-1]], dtype=np.float32)
    pieces = []
    for start in range(0, len(targets_T), block_size):
        part = slice(start, start + block_size)
        inputs = inputs_T[part].copy()
        control = announced[min(start, len(announced) - 1)] if announced else None
        if start and control is not None and targets_T[start] != control:
            inputs[0] = control
        pieces.append(Piece(inputs, targets_T[part], rewards_T[part]))
    return pieces


def pack(lengths: Sequence[int], block_size: int) -> list[list[int]]:
    """Which pieces share a block: the longest first, each into the fullest block that has room for it.

    Best-fit-decreasing bin packing (Johnson 1974), for language models Ding et al. 2024: no piece is cut to fill a
    block up.

    >>> pack([3, 8, 5, 2], block_size=8)
    [[1], [2, 0], [3]]

    Raises:
        ValueError: a piece is longer than a block.
    """
    blocks: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # room left -> blocks, the newest last
    rooms: list[int] = []  # those of the keys that have a block, in order
    for piece in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[piece]
        if length > block_size:
            raise ValueError(f"a piece of {length} tokens does not fit into a block of {block_size}")
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            blocks.append([])
            number, room = len(blocks) - 1, block_size
        else:
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                rooms.pop(at)
        blocks[number].append(piece)
        left = room - length
        if left:
            if not with_room[left]:
                bisect.insort(rooms, left)
            with_room[left].append(number)
    return blocks


@dataclass(frozen=True)
class Batch:
    """B blocks, ready for the policy, and their N predictions in a row."""

    input_ids_BS: Tensor
    positions_BS: Tensor
    """From 0 in every piece."""
    attention_mask: Tensor | None
    """(B, 1, S, S) bool, True where attention may look: back, within the piece. None: one piece a block."""
    select_N: Tensor
    """Indices into the flattened places: where to predict."""
    targets_N: Tensor
    rewards_N: Tensor


@dataclass(frozen=True)
class Blocks:
    """N blocks of S places; what is beyond a block's pieces is padding."""

    input_ids_NS: Tensor
    target_ids_NS: Tensor
    rewards_NS: Tensor
    positions_NS: Tensor
    pieces_NS: Tensor
    """The number of a place's piece within its block; −1 is padding."""

    @classmethod
    def of(cls, pieces: Sequence[Piece], block_size: int, pad_id: int) -> Blocks:
        """Pack pieces.

        Raises:
            ValueError: there are none, or one is longer than a block.
        """
        if not pieces:
            raise ValueError("there is nothing to learn from: no documents")
        packed = pack([len(piece.targets_T) for piece in pieces], block_size)
        shape = (len(packed), block_size)
        input_ids, target_ids = np.full(shape, pad_id, dtype=np.int32), np.full(shape, pad_id, dtype=np.int32)
        positions, numbers = np.zeros(shape, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
        rewards = np.zeros(shape, dtype=np.float32)
        for row, members in enumerate(packed):
            start = 0
            for number, index in enumerate(members):
                piece = pieces[index]
                at = slice(start, start + len(piece.targets_T))
                input_ids[row, at], target_ids[row, at] = piece.inputs_T, piece.targets_T
                rewards[row, at], numbers[row, at] = piece.rewards_T, number
                positions[row, at] = np.arange(len(piece.targets_T))
                start = at.stop
        return cls(*map(torch.from_numpy, (input_ids, target_ids, rewards, positions, numbers)))

    def __len__(self) -> int:
        return len(self.input_ids_NS)

    @property
    def num_tokens(self) -> int:
        """Predictions in all blocks."""
        return int((self.pieces_NS >= 0).sum())

    def fingerprint(self) -> str:
        """A hash of all there is in the blocks."""
        digest = hashlib.blake2b(digest_size=16)
        for part in fields(self):
            digest.update(getattr(self, part.name).numpy().tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        """N, and S."""
        return len(self), self.input_ids_NS.shape[1]

    def select(self, rows: Sequence[int] | Tensor) -> Blocks:
        """Some of the blocks."""
        at = torch.as_tensor(rows)
        return Blocks(*(getattr(self, part.name)[at] for part in fields(self)))

    def micro_batches(self, max_tokens: int) -> Iterator[tuple[Tensor, Blocks]]:
        """As `Trajectories.micro_batches`, in their order."""
        for rows in consecutive(self.shape, max_tokens):
            yield rows, self.select(rows)

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """All of them, cut to the longest."""
        width = int((self.pieces_NS >= 0).sum(-1).max())
        pieces_BS = self.pieces_NS[:, :width]

        def moved(table_NS: Tensor) -> Tensor:
            table_BS = table_NS[:, :width]
            return (table_BS if table_BS.is_floating_point() else table_BS.long()).to(device)

        select_N = (pieces_BS >= 0).flatten().nonzero().squeeze(-1).to(device)
        mask = None
        if bool((pieces_BS > 0).any()):
            # Padding is a piece of its own: a row that may look nowhere would be NaN.
            pieces_BS = pieces_BS.to(device)
            same_BSS = pieces_BS[:, :, None] == pieces_BS[:, None, :]
            mask = (same_BSS & torch.ones_like(same_BSS[0]).tril())[:, None]
        return Batch(
            moved(self.input_ids_NS),
            moved(self.positions_NS),
            mask,
            select_N,
            moved(self.target_ids_NS).flatten()[select_N],
            moved(self.rewards_NS).flatten()[select_N],
        )
