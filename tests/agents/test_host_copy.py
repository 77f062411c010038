"""What was on the device when the copy began is what arrives."""

import pytest
import torch

from agents.host_copy import HostCopy

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_the_content_arrives(device):
    tensor = torch.arange(5, device=device)
    copied = HostCopy(tensor)
    assert copied.numpy().tolist() == [0, 1, 2, 3, 4]
    assert copied.numpy().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_does_not_wait_for_what_comes_after():
    tensor = torch.arange(5, device="cuda")
    copied = HostCopy(tensor)
    torch.cuda._sleep(10**9)  # about half a second of the device
    later = torch.cuda.Event()
    later.record()
    assert copied.numpy().tolist() == [0, 1, 2, 3, 4]
    assert not later.query()
