"""ProcessGroup that train together, here as threads that exchange sums; several real ones: tests/scripts."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from prunegym.pruning.data import Images
from prunegym.pruning.errors import PruningError
from prunegym.pruning.training.batch_norms import batch_norms_of, reestimate_
from prunegym.pruning.training.distributed import SINGLE_PROCESS, add_up_gradients_, launched, share_of
from prunegym.pruning.training.loop import TrainingConfig, TrainingLoop, seeded


class Together:
    """Threads in the place of processes."""

    def __init__(self, number, tensors, barrier):
        self.number, self.count = number, barrier.parties
        self._tensors, self._barrier = tensors, barrier

    def total(self, tensor):
        self._tensors[self.number] = tensor
        self.wait()
        found = sum(self._tensors.values())
        self.wait()
        return found

    def wait(self):
        self._barrier.wait(timeout=60)


def in_processes(count, work):
    """What each of `count` processes returns from `work`, which is given its ProcessGroup."""
    tensors, barrier = {}, threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda number: work(Together(number, tensors, barrier)), range(count)))


@pytest.mark.parametrize(("count", "sizes"), [(6, [2, 2, 2]), (7, [2, 2, 3]), (3, [1, 1, 1]), (2, [0, 1, 1])])
def test_shares_are_even_and_complete(count, sizes):
    everyone = [Together(number, {}, threading.Barrier(3)) for number in range(3)]
    shares = [list(range(count))[share_of(one, count)] for one in everyone]
    assert [len(share) for share in shares] == sizes
    assert [one for share in shares for one in share] == list(range(count))
    assert share_of(SINGLE_PROCESS, count) == slice(0, count)


def some_images(count=23):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 2, 4, 4, generator=generator, dtype=torch.float64)
    return Images(pixels, torch.arange(count) % 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
        self.used, self.unused = nn.Sequential(*layers), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


with torch.random.fork_rng():
    torch.manual_seed(0)
    NET = Net().double().eval()


def descended(processes):
    """A network after three epochs in batches of 8, 8 and 7, and the losses of the epochs."""
    model = copy.deepcopy(NET)

    def loss_of(batch, labels):
        return nn.functional.cross_entropy(model(batch), labels)

    config = TrainingConfig(3, 0.1, 8, shift=1, flip=True, seed=4)
    descent = TrainingLoop(
        list(model.parameters()), some_images(), config, loss_of, max_norm=0.5, processes=processes
    )
    return model, [epoch.loss for epoch in descent.epochs()]


@pytest.mark.parametrize("count", [2, 3])
def test_a_step_together_is_the_step_of_one_alone(count):
    alone, losses = descended(SINGLE_PROCESS)
    with seeded(0):
        together = in_processes(count, descended)
    for model, found in together:
        assert found == pytest.approx(losses, rel=1e-12)
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
        assert torch.equal(model.unused.weight, NET.unused.weight)  # not even decayed


def drawn(number, epochs, done=0):
    """What a network in one of two processes draws itself, in each step of two an epoch."""
    weight, seen = nn.Parameter(torch.zeros(1, dtype=torch.float64)), []

    def loss_of(batch, labels):
        seen.append(torch.rand(1).item())
        return (weight * batch).mean()

    one = Together(number, {}, threading.Barrier(2))
    one.total = lambda tensor: tensor
    config = TrainingConfig(epochs, 0.1, 12, seed=3)
    descent = TrainingLoop([weight], some_images(), config, loss_of, processes=one)
    with seeded(3):
        list(descent.epochs(done=done))
    return seen


def test_no_two_processes_drop_out_alike_and_a_resumed_one_does_as_before():
    first, second = drawn(0, 3), drawn(1, 3)
    assert len({*first, *second}) == 12
    assert drawn(1, 3, done=2) == second[4:]


def test_gradients_add_up_where_some_process_has_one():
    def work(processes):
        first, second, third = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        first.grad = torch.tensor([1.0, 10.0]) * (processes.number + 1)
        if processes.number == 1:
            second.grad = torch.tensor([5.0, 6.0])
        add_up_gradients_(processes, [first, second, third])
        return first.grad.tolist(), second.grad.tolist(), third.grad

    assert in_processes(2, work) == [([3.0, 30.0], [5.0, 6.0], None)] * 2


def test_statistics_are_those_of_all_images(monkeypatch):
    monkeypatch.setattr("prunegym.pruning.training.batch_norms.BATCH_SIZE", 6)

    def work(processes):
        model = copy.deepcopy(NET)
        reestimate_(model, some_images(), processes)
        (norm,) = batch_norms_of(model)
        return norm.running_mean, norm.running_var

    expected = work(SINGLE_PROCESS)
    for count in (2, 5):  # more than there are batches
        for found in in_processes(count, work):
            torch.testing.assert_close(found, expected)


def test_a_batch_too_small_to_share_is_refused():
    barrier = threading.Barrier(9)
    with pytest.raises(PruningError, match="9 processes cannot share 7 images; make batches larger"):
        descended(Together(0, {}, barrier))


class TestLaunched:
    def test_without_a_launcher_there_is_one_and_no_package_is_needed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "accelerate", None)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with launched("auto") as processes:
            assert processes is SINGLE_PROCESS

    def test_without_the_package_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "accelerate", None)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with (
            pytest.raises(PruningError, match=r'pip install "prunegym\[distributed\]"'),
            launched("auto"),
        ):
            raise AssertionError

    @pytest.mark.parametrize("size", ["x", "0", "-1", "1.5", "²", "9" * 30])
    def test_a_number_of_processes_that_is_none_is_refused(self, monkeypatch, size):
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(PruningError, match="WORLD_SIZE must be a number of processes"), launched("auto"):
            raise AssertionError

    def test_what_no_launcher_set_up_is_refused(self, monkeypatch):
        pytest.importorskip("accelerate")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "x")
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        with pytest.raises(PruningError, match="start the command by accelerate launch"), launched("cpu"):
            raise AssertionError

    def test_one_gpu_cannot_serve_all(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(PruningError, match="several processes cannot share cuda:1"), launched("cuda:1"):
            raise AssertionError
