"""The loop: its order, its schedule, and that a killed fit ends where an uninterrupted one does."""

import math
import os
import signal

import pytest
import torch
from torch import nn

from agents.training_loop import Checkpoint, LoopConfig, TrainingLoop, Watch, train

DATA_NH = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CONFIG = LoopConfig(epochs=3, batch_size=4, learning_rate=0.1, warmup=0.25)


class Regression:
    """A line through ten points: the smallest thing that can be fitted."""

    def __init__(self, config=CONFIG, seed=0, count=10):
        self.module = nn.Linear(2, 1, dtype=torch.float64)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)
        self.loop = TrainingLoop(self.module.parameters(), count, config, width=2, seed=seed)
        self.seen = []

    def learn(self, rows):
        self.seen.append(rows)
        loss = (self.module(DATA_NH[rows, :2]).squeeze(-1) - DATA_NH[rows, 2]).square().mean()
        loss.backward()
        return loss.item()

    def weights(self):
        return torch.cat([weight.detach().flatten() for weight in self.module.parameters()])


def test_every_epoch_shows_every_item_once():
    fit = Regression()
    assert train(fit.loop, fit.module, fit.learn, Watch())
    flat = [row for rows in fit.seen for row in rows]
    assert len(fit.seen) == fit.loop.steps == math.ceil(3 * 10 / 4)
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    other = Regression(seed=1)
    train(other.loop, other.module, other.learn, Watch())
    assert other.seen != fit.seen


def test_fewer_items_than_a_batch_are_still_read_as_often_as_asked():
    fit = Regression(LoopConfig(epochs=5, batch_size=64), count=3)
    assert (fit.loop.batch, fit.loop.steps) == (3, 5)


def test_no_items_is_an_error():
    with pytest.raises(ValueError, match="nothing to learn from"):
        Regression(count=0)


def test_a_frozen_weight_stays():
    fit = Regression()
    fit.module.bias.requires_grad_(False)
    loop = TrainingLoop(fit.module.parameters(), 10, CONFIG, width=2)
    train(loop, fit.module, fit.learn, Watch())
    assert float(fit.module.bias) == 0
    assert fit.module.weight.abs().min() > 0


def test_gradients_that_are_not_finite_stop_the_fit_before_the_weights_change():
    fit = Regression()
    fit.module.weight.grad = torch.full((1, 2), torch.nan, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match=r"step 1 are not finite: lower learning_rate \(0.1\)"):
        fit.loop.update()
    assert fit.weights().abs().max() == 0


def interrupted_after(fit, step, watch):
    """Learn, with a SIGTERM in the middle of a step."""

    def learn(rows):
        if fit.loop.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return fit.learn(rows)

    return train(fit.loop, fit.module, learn, watch)


def watch_of(fit, path):
    return Watch(
        validate=lambda: {"sum": float(fit.weights().sum())}, every=3, checkpoint=Checkpoint(path, fingerprint="data")
    )


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_an_interrupted_fit_ends_as_an_uninterrupted_one(tmp_path, step, capsys):
    whole = Regression()
    history = watch_of(whole, tmp_path / "whole.pt")
    assert train(whole.loop, whole.module, whole.learn, history)
    assert [row["step"] for row in history.history] == [3, 6, 8]

    path = tmp_path / "checkpoint.pt"
    first = Regression()
    assert not interrupted_after(first, step, watch_of(first, path))
    assert "stopping after this update" in capsys.readouterr().err
    assert len(first.seen) == step
    second = Regression()
    with torch.no_grad():
        second.module.weight += 1  # a fresh process draws other weights: the checkpoint's count
    watch = watch_of(second, path)
    assert train(second.loop, second.module, second.learn, watch)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weights(), whole.weights())
    assert watch.history == history.history


def test_a_killed_fit_repeats_what_its_checkpoint_lacks(tmp_path):
    """Killed without a word after step 5, the checkpoint being that of step 3."""
    whole, killed, resumed = Regression(), Regression(), Regression()
    train(whole.loop, whole.module, whole.learn, Watch())

    def learn(rows):
        if killed.loop.step == 5:
            raise RuntimeError("the machine is gone")
        return killed.learn(rows)

    with pytest.raises(RuntimeError):
        train(killed.loop, killed.module, learn, watch_of(killed, tmp_path / "c.pt"))
    train(resumed.loop, resumed.module, resumed.learn, watch_of(resumed, tmp_path / "c.pt"))
    assert resumed.seen == whole.seen[3:]
    assert torch.equal(resumed.weights(), whole.weights())


def test_without_the_optimisers_state_it_ends_elsewhere(tmp_path):
    """Must fail: weights and step alone are not enough."""
    whole, first, second = Regression(), Regression(), Regression()
    train(whole.loop, whole.module, whole.learn, Watch())
    interrupted_after(first, 5, Watch(checkpoint=Checkpoint(tmp_path / "c.pt", "data")))
    second.module.load_state_dict(first.module.state_dict())
    second.loop.step = 5
    train(second.loop, second.module, second.learn, Watch())
    assert second.seen == whole.seen[5:]
    assert not torch.allclose(second.weights(), whole.weights())


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    fit = Regression()
    Checkpoint(path, "these texts").save(fit.module, fit.loop, [])
    with pytest.raises(ValueError, match="saved of other texts or options"):
        Checkpoint(path, "other texts").load(fit.module, fit.loop)
    longer = Regression(LoopConfig(epochs=4, batch_size=4))
    with pytest.raises(ValueError, match="takes 8 steps, this one 10"):
        Checkpoint(path, "these texts").load(longer.module, longer.loop)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is no checkpoint"):
        Checkpoint(path, "these texts").load(fit.module, fit.loop)
