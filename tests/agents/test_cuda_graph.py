"""A captured function does what the function does, and recording it leaves no trace."""

import pytest
import torch

from agents.cuda_graph import Graphs

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_elsewhere_it_is_the_function_itself():
    run = lambda: 3  # noqa: E731
    assert Graphs(torch.device("cpu")).captured(run, state=()) is run


@needs_cuda
def test_a_replay_goes_on_from_where_the_state_stood():
    count = torch.zeros(4, device="cuda")

    def run():
        count.add_(1)
        return count * 2

    replay = Graphs(count.device).captured(run, state=(count,))
    assert count.tolist() == [0] * 4
    assert replay().tolist() == [2] * 4
    count.fill_(10)
    assert replay().tolist() == [22] * 4


@needs_cuda
def test_what_cannot_be_captured_is_run_and_said():
    count = torch.zeros(1, device="cuda")

    def run():
        count.add_(1)
        return count * 2 if count.item() else count  # asks the device in the middle

    graphs, stream = Graphs(count.device), torch.cuda.current_stream()
    with pytest.warns(RuntimeWarning, match="cannot be captured as a CUDA graph"):
        again = graphs.captured(run, state=(count,))
    assert count.tolist() == [0]
    assert again().tolist() == [2]
    # Nothing of the capture is left, and none is tried again.
    assert torch.cuda.current_stream() == stream
    assert len(torch.rand(3, device="cuda").tolist()) == 3
    assert graphs.captured(run, state=(count,)) is run


@needs_cuda
def test_the_current_device_does_not_matter():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    count = torch.zeros(4, device="cuda:1")
    replay = Graphs(count.device).captured(lambda: count.add_(1) * 2, state=(count,))
    assert count.tolist() == [0] * 4
    assert replay().tolist() == [2] * 4
