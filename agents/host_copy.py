"""A tensor on its way from the device to the host, while the device goes on."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


class HostCopy:
    """Begins to copy a tensor to the host; what the device is asked for afterwards does not delay it.

    Args:
        tensor: not to be changed in place afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> npt.NDArray[Any]:
        """The content; waits for the copy, and for nothing that was asked for after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.cpu().numpy()
