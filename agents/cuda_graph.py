"""Functions without arguments as CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")
_WARM_UPS = 2


class Graphs:
    """Graphs that are replayed one at a time: what one needs on the way, the next may overwrite.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._captures = device.type == "cuda"
        if self._captures:
            with torch.cuda.device(device):
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream()

    def captured(self, run: Callable[[], Found], *, state: Sequence[Tensor]) -> Callable[[], Found]:
        """``run``, recorded once and then replayed, on CUDA; ``run`` itself elsewhere.

        A graph reads and writes the memory that was there when it was recorded. What ``run`` reads must therefore stay
        in place and be changed in place; what a replay returns is overwritten by the next, of this graph or another.

        Args:
            run: launches work on the device, and asks for no result of it.
            state: tensors that ``run`` changes; recording it (which takes a few runs) leaves them as they were.

        Where ``run`` cannot be captured, a warning says why, ``run`` is returned, and nothing is captured any more.
        """
        if not self._captures:
            return run
        before = [tensor.clone() for tensor in state]

        def restore() -> None:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

        # Lazily made memory (workspaces, the cache itself) must exist before: of a graph it would be private.
        outside = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                run()
                restore()
        outside.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Both named: by default the graph's stream is one of the current device, whichever that is.
            with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                found = run()
        except RuntimeError as error:
            self._give_up(outside)
            restore()
            warnings.warn(
                f"the token step cannot be captured as a CUDA graph and is launched operation by operation, which is "
                f"slower: {str(error).splitlines()[0]}",
                RuntimeWarning,
                stacklevel=2,
            )
            return run

        def replay() -> Found:
            graph.replay()
            return found

        return replay

    def _give_up(self, outside: torch.cuda.Stream) -> None:
        """What a capture that fails leaves behind: its stream as the current one, and a generator that waits for it."""
        self._captures = False
        with torch.cuda.device(self.device):  # to which a stream that is set would go, and stay
            torch.cuda.set_stream(outside)
            torch.cuda.synchronize()
        generator = torch.cuda.default_generators[outside.device_index]
        generator.graphsafe_set_state(generator.clone_state())
