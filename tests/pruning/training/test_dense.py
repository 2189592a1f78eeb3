import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunegym.pruning.data import Images, load_splits
from prunegym.pruning.errors import PruningError
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.training import dense
from prunegym.pruning.training.dense import dense_digits, train_dense
from prunegym.pruning.training.loop import TrainingConfig


def two_blobs(count=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 2, 2, generator=generator) + 4 * (labels.view(-1, 1, 1, 1) - 0.5)
    return Images(images, labels)


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(4, 2))


def equal(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def settings(epochs, **given):
    return TrainingConfig(epochs, **{"learning_rate": 0.1, **given})


def accuracy(model, images):
    with torch.no_grad():
        return (model(images.images).argmax(1) == images.labels).float().mean().item()


def test_training_learns_what_can_be_learned():
    blobs = two_blobs()
    swapped = Images(blobs.images, 1 - blobs.labels)
    assert accuracy(train_dense(linear(), blobs, settings(epochs=5, batch_size=8)), blobs) > 0.95
    assert accuracy(train_dense(linear(), swapped, settings(epochs=5, batch_size=8)), blobs) < 0.05


@pytest.mark.parametrize("epochs", [1, 2])
def test_steps_are_those_worked_out_by_hand(epochs):
    blobs = two_blobs(8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.zero_()
    trained = train_dense(
        model, blobs, settings(epochs=epochs, batch_size=8, learning_rate=0.5, weight_decay=0.1)
    )
    inputs = blobs.images.flatten(1)
    targets = torch.tensor([[0.95, 0.05], [0.05, 0.95]])[blobs.labels]  # smoothed by 0.1
    weight, velocity = torch.zeros(2, 4), torch.zeros(2, 4)
    for rate in (0.5, 0.25)[:epochs]:  # half a cosine falls to its half half-way
        outputs = (inputs @ weight.T).exp()
        error = outputs / outputs.sum(1, keepdim=True) - targets
        gradient = error.T @ inputs / 8 + 0.1 * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - rate * (gradient + 0.9 * velocity)  # Nesterov
    torch.testing.assert_close(trained[1].weight.detach(), weight)


def test_the_model_given_and_the_global_generator_stay_as_they_were():
    model = linear()
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    trained = train_dense(model, two_blobs(), settings(epochs=1))
    assert equal(model, before)
    assert not equal(trained, before)
    assert not trained.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides_the_weights():
    first, again, other = (
        train_dense(linear(), two_blobs(), settings(epochs=1, batch_size=16, seed=s)) for s in (1, 1, 2)
    )
    assert equal(first, again)
    assert not equal(first, other)


def test_no_batch_is_a_lonely_image():
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            seen.append(len(x))
            return self.linear(x.flatten(1))

    train_dense(Watch(), two_blobs(17), settings(epochs=1, batch_size=8))
    assert sorted(seen) == [5, 6, 6]


@pytest.mark.parametrize("shift", [0, 1])
def test_images_move_only_by_the_shift_allowed(shift):
    square = torch.zeros(1, 1, 6, 6)
    square[..., 2:4, 2:4] = 1
    seen = set()

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(36, 2)

        def forward(self, x):
            assert x.shape == (1, 1, 6, 6)
            assert x.sum() == 4
            seen.add(tuple((x[0, 0].nonzero()[0] - 2).tolist()))
            return self.linear(x.flatten(1))

    train_dense(Watch(), Images(square, torch.tensor([1])), settings(epochs=60, shift=shift))
    reach = range(-shift, shift + 1)
    assert seen == {(dy, dx) for dy in reach for dx in reach}


def test_a_loss_that_is_not_a_number_is_reported():
    blobs = two_blobs()
    blobs.images[5] = float("nan")
    with pytest.raises(PruningError, match="training diverged in epoch 1: the loss is nan"):
        train_dense(linear(), blobs, settings(epochs=2))


class TestDenseDigits:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        monkeypatch.setattr(dense, "_DIGITS_CONFIG", replace(dense._DIGITS_CONFIG, epochs=1))

    def test_is_trained_once_and_then_read_from_the_cache(self, tmp_path, monkeypatch):
        first = dense_digits(tmp_path / "new")
        (file,) = (tmp_path / "new").iterdir()
        assert file.name.startswith("digits_resnet-")
        monkeypatch.setattr(dense, "train_dense", None)
        again = dense_digits(tmp_path / "new")
        assert equal(first, again)
        assert not again.training

    def test_learns_from_no_image_it_may_be_judged_on(self, tmp_path, monkeypatch):
        given = []
        monkeypatch.setattr(
            dense, "train_dense", lambda model, images, *_, **__: given.append(images) or model
        )
        dense_digits(tmp_path)
        splits = load_splits("digits", resolve_network("digits_resnet"))
        learned = {image.numpy().tobytes() for image in given[0].images}
        assert len(learned) == len(splits.train) + len(splits.calibration)
        for part in (splits.reward, splits.validation, splits.test):
            assert learned.isdisjoint(image.numpy().tobytes() for image in part.images)

    @pytest.mark.parametrize("damage", [lambda whole: whole[:1000], lambda whole: whole[:-1] + b"x"])
    def test_a_damaged_cache_is_trained_anew_with_a_warning(self, tmp_path, caplog, damage):
        first = dense_digits(tmp_path)
        (file,) = tmp_path.iterdir()
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        with caplog.at_level(logging.WARNING):
            again = dense_digits(tmp_path)
        assert f"{file} is damaged and left aside" in caplog.text
        assert equal(first, again)
        assert list(tmp_path.iterdir()) == [file]
        assert file.read_bytes() == whole

    def test_a_cache_that_cannot_be_written_costs_a_warning_only(self, tmp_path, caplog):
        (tmp_path / "file").write_text("in the way")
        with caplog.at_level(logging.WARNING):
            dense_digits(tmp_path / "file")
        assert "is not cached" in caplog.text

    def test_another_configuration_gets_another_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(dense, "train_dense", lambda model, images, *_, **__: model)
        dense_digits(tmp_path)
        monkeypatch.setattr(dense, "_DIGITS_CONFIG", replace(dense._DIGITS_CONFIG, epochs=2))
        dense_digits(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2

    def test_another_width_gets_another_file(self):
        assert dense._fingerprint(nn.Linear(4, 2)) != dense._fingerprint(nn.Linear(4, 3))

    def test_the_thread_count_comes_back(self, tmp_path, monkeypatch):
        counts = []
        monkeypatch.setattr(
            dense,
            "train_dense",
            lambda model, images, *_, **__: counts.append(torch.get_num_threads()) or model,
        )
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            dense_digits(tmp_path)
            assert (counts, torch.get_num_threads()) == ([1], 2)
        finally:
            torch.set_num_threads(before)


@pytest.mark.slow
def test_the_dense_digits_network_is_a_good_one(tmp_path):
    splits = load_splits("digits", resolve_network("digits_resnet"))
    assert accuracy(dense_digits(tmp_path), splits.test) >= 0.975
