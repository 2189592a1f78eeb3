import math

import pytest
import torch
from torch import nn

from prunegym.pruning.data import Images
from prunegym.pruning.errors import DataError, PruningError
from prunegym.pruning.training.loop import TrainingConfig, TrainingLoop, seeded


def descent_on(images, config, seen=None, **settings):
    """A descent on the mean square of one weight times the pixels; `seen` collects the batches."""
    weight = nn.Parameter(torch.ones(1))

    def loss_of(batch, labels):
        if seen is not None:
            seen.append(batch)
        return (weight * batch).square().mean()

    return TrainingLoop([weight], images, config, loss_of, **settings), weight


def ramp(count=4):
    """Images whose pixels rise to the right, each by its own amount."""
    pixels = torch.arange(4.0) * torch.arange(1.0, count + 1)[:, None]
    return Images(pixels.view(count, 1, 1, 4).expand(-1, 1, 3, 4).contiguous(), torch.zeros(count).long())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"shift": -1}, "shift must be 0 or more, got -1"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be 0 or more, got nan"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, got 0.0"),
        ({"learning_rate": math.inf}, "learning_rate must be above 0 and finite, got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite, got nan"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(changed, expected):
    with pytest.raises(PruningError, match=expected):
        TrainingConfig(**{"epochs": 1, "learning_rate": 0.1, "batch_size": 8, **changed})


def test_no_image_is_refused():
    empty = Images(torch.zeros(0, 1, 3, 4), torch.zeros(0).long())
    with pytest.raises(DataError, match="there is no image to train on"):
        descent_on(empty, TrainingConfig(1, 0.1, 8))


def test_on_a_processor_a_gpu_that_is_there_is_left_alone(monkeypatch):
    """Whoever touches it cannot fork any more; without one, torch itself refuses."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("a GPU was touched"))
    before = torch.get_rng_state()
    with seeded(0):
        drawn = torch.rand(1)
        descent, _ = descent_on(ramp(), TrainingConfig(1, 0.1, 4))
        list(descent.epochs())
        descent.restore_(*descent.state())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(1, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_mirrored_on_its_own_half_of_the_time(flip):
    seen, images = [], ramp()
    descent, _ = descent_on(images, TrainingConfig(40, 1e-9, 4, flip=flip), seen)
    with seeded(0):
        list(descent.epochs())
    mirrored = []
    for batch in seen:
        for image in batch:
            number = int(image.max() / 3) - 1
            falls = bool(image[0, 0, 0] > 0)
            assert torch.equal(image.flip(-1) if falls else image, images.images[number])
            mirrored.append(falls)
    together = [len(set(mirrored[at : at + 4])) == 1 for at in range(0, 160, 4)]
    assert (50 < sum(mirrored) < 110) if flip else not any(mirrored)
    assert all(together) == (not flip)


def test_the_loss_of_an_epoch_is_the_mean_over_its_images():
    images = ramp(5)  # in batches of 3 and 2
    descent, _ = descent_on(images, TrainingConfig(2, 1e-12, 3))
    expected = float(images.images.square().mean())
    assert [epoch.loss for epoch in descent.epochs()] == pytest.approx([expected] * 2)


@pytest.mark.parametrize(("max_norm", "fallen"), [(math.inf, 1.9 * 0.1 * 2 * 3.5), (2.0, 1.9 * 0.1 * 2)])
def test_a_long_gradient_is_cut(max_norm, fallen):
    descent, weight = descent_on(ramp(1), TrainingConfig(1, 0.1, 8, weight_decay=0), max_norm=max_norm)
    list(descent.epochs())  # one step; the mean square of the pixels is 3.5, Nesterov's first step 1.9 long
    assert weight.item() == pytest.approx(1 - fallen)


def test_a_gradient_that_is_not_a_number_is_reported_though_the_loss_is_one():
    weight = nn.Parameter(torch.zeros(1))
    descent = TrainingLoop(
        [weight], ramp(), TrainingConfig(2, 0.1, 8), lambda batch, labels: weight.sqrt().sum()
    )
    with pytest.raises(
        PruningError, match="in epoch 1: the norm of its gradient is inf; try a learning rate"
    ):
        list(descent.epochs())


def test_what_was_done_is_not_done_again():
    descent, _ = descent_on(ramp(), TrainingConfig(4, 0.1, 8))
    assert [epoch.number for epoch in descent.epochs(done=1)] == [2, 3, 4]
    assert list(descent.epochs(done=4)) == []
