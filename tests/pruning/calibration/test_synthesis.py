import copy
import logging

import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.statistics import calibrate
from prunegym.pruning.calibration.synthesis import SYNTHESES, SyntheticSplits, distilled, records
from prunegym.pruning.calibration.synthesis.distilled import distilled_images, smooth
from prunegym.pruning.calibration.synthesis.noise import restandardised
from prunegym.pruning.networks.registry import NetworkSpec
from tests.pruning.example_networks import Head, randomised, unit
from tests.pruning.oracles import assert_untouched, example, snapshot

SHAPE = (3, 8, 8)
NETWORKS = ("plain", "residual", "padded", "concat", "depthwise", "grouped", "conv1d", "conv3d", "mlp")


@pytest.fixture(autouse=True)
def small_sets(monkeypatch, tmp_path):
    """Few images, few steps, and a cache of their own."""
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "MAX_IMAGES", 32)
    monkeypatch.setattr(distilled, "STEPS", 12)


def trained(seed=0):
    """A small network whose BatchNorm statistics are those of smooth, correlated images."""
    model = randomised(nn.Sequential(unit(3, 6), unit(6, 8, stride=2), unit(8, 6), Head(6)), seed)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(256, 1, 4, 4, generator=generator).repeat(1, 3, 2, 2) + 0.5
    return restandardised(model, images), images


def seen(model, images):
    """(mean, standard deviation) of what enters each BatchNorm."""
    found = []

    def keep(norm, args):
        found.append((args[0].mean((0, 2, 3)), args[0].std((0, 2, 3))))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(keep) for norm in norms]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found, [(norm.running_mean, norm.running_var.sqrt()) for norm in norms]


def mismatch(model, images):
    found, expected = seen(model, images)
    return sum(
        float(((mean - m) / s).square().mean() + (std / s).log().square().mean())
        for (mean, std), (m, s) in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", list(SYNTHESES))
class TestEverySynthesis:
    @pytest.mark.parametrize("network", NETWORKS)
    def test_fits_the_network_and_leaves_it_alone(self, name, network):
        model, graph, images = example(network)
        before = snapshot(model)
        inputs = SYNTHESES[name](model, images.shape[1:], seed=0, progress=False)
        assert_untouched(model, before)
        assert inputs.shape == tuple(images.shape[1:])
        assert all(one.mean.isfinite().all() for one in calibrate(graph, inputs).moments.values())

    def test_the_same_seed_gives_the_same_inputs(self, name):
        model, _ = trained()
        one, same, other = (
            torch.cat(SYNTHESES[name](model, SHAPE, seed=seed, progress=False).batches) for seed in (3, 3, 4)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_a_network_without_batch_norm_gets_noise_and_a_warning(self, name, caplog):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Head(4))
        with caplog.at_level(logging.WARNING):
            inputs = SYNTHESES[name](model, SHAPE, seed=0, progress=False)
        assert "Sequential has no BatchNorm" in caplog.text
        assert inputs.reference is model
        assert inputs.layerwise is None
        assert torch.cat(inputs.batches).std() == pytest.approx(1, abs=0.05)


@torch.no_grad()
def test_noise_leaves_every_batch_norm_as_it_was_in_training():
    model, _ = trained()
    inputs = SYNTHESES["noise"](model, SHAPE, seed=0, progress=False)
    outputs = []
    for module in inputs.reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda norm, _, y: outputs.append((norm, y)))
    inputs.reference(torch.cat(inputs.batches))
    for norm, y in outputs:
        torch.testing.assert_close(y.mean((0, 2, 3)), norm.bias, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(y.std((0, 2, 3)), norm.weight.abs(), atol=1e-2, rtol=1e-2)
    assert inputs.reference[0][1].momentum == model[0][1].momentum


def test_distilled_images_come_near_the_statistics_of_training():
    model, images = trained()
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    made = distilled_images(model, noise, seed=0, progress=False)
    assert mismatch(model, images) < mismatch(model, made) < 0.5 * mismatch(model, noise)


class TestTheCache:
    def make(self, model, seed=0):
        return torch.cat(SYNTHESES["distilled"](model, SHAPE, seed=seed, progress=False).batches)

    def test_the_same_weights_are_not_worked_on_twice(self, monkeypatch):
        model, _ = trained()
        first = self.make(model)
        monkeypatch.setattr(distilled, "_match", None)
        assert torch.equal(self.make(copy.deepcopy(model)), first)

    def test_other_weights_or_another_seed_are(self):
        model, _ = trained()
        other = copy.deepcopy(model)
        other[0][1].running_mean[0] += 1e-3
        first = self.make(model)
        assert not torch.equal(self.make(other), first)
        assert not torch.equal(self.make(model, seed=1), first)

    def test_a_batch_of_one_seed_is_no_batch_of_the_next(self, tmp_path, monkeypatch):
        model, _ = trained()
        first, second = (torch.randn(128, *SHAPE, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        distilled_images(model, first, seed=0, progress=False)
        after = distilled_images(model, second, seed=1, progress=False)
        monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "empty"))
        assert torch.equal(distilled_images(model, second, seed=1, progress=False), after)

    def test_a_damaged_file_is_made_anew(self, tmp_path):
        model, _ = trained()
        first = self.make(model)
        (file,) = (tmp_path / "cache").glob("distilled-*")
        *most, last = file.read_bytes()
        file.write_bytes(bytes([*most, last ^ 1]))
        assert torch.equal(self.make(model), first)
        assert file.read_bytes() == bytes([*most, last])

    def test_a_folder_that_cannot_be_written_does_not_stop_the_work(self, monkeypatch, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "file"))
        assert len(self.make(trained()[0])) == 32
        assert "not cached" in caplog.text


def test_optimisation_stops_where_more_steps_gain_nothing(monkeypatch):
    monkeypatch.setattr(distilled, "MIN_MISMATCH", 1e9)
    noise = torch.randn(4, *SHAPE)
    assert torch.equal(distilled_images(trained()[0], noise, seed=0, progress=False), smooth(noise))


def test_a_smooth_start_falls_off_with_frequency_and_ties_its_colours():
    start = smooth(torch.randn(400, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert start.std() == pytest.approx(1)
    spectrum = torch.fft.rfft(start, dim=-1).abs().square().mean((0, 1, 2))
    assert spectrum[2] > 3 * spectrum[5] > 9 * spectrum[14]
    colours = start.movedim(1, 0).flatten(1).corrcoef()
    assert colours[0, 1] == pytest.approx(0.83, abs=0.03)


class TestSyntheticSplits:
    def splits(self, **settings):
        model, _ = trained()
        spec = NetworkSpec("plain", lambda: model, SHAPE, (0.0,) * 3, (1.0,) * 3)
        return model, SyntheticSplits(model, spec, 0, False, **settings)

    @torch.no_grad()
    def test_the_labels_are_the_networks_own_answers(self):
        model, splits = self.splits()
        for part in (splits.reward, splits.validation, splits.test):
            assert not part.labelled
            assert torch.equal(model(part.images).argmax(1), part.labels)

    def test_no_two_sets_share_an_image(self):
        model, splits = self.splits()
        calibration = torch.cat(SYNTHESES["distilled"](model, SHAPE, seed=0, progress=False).batches)
        sets = [calibration, splits.reward.images, splits.validation.images, splits.test.images]
        images = torch.cat(sets).flatten(1)
        assert len(images.unique(dim=0)) == len(images) == 32 + 3 * 16

    def test_real_images_take_the_place_of_the_test_images(self):
        _, splits = self.splits()
        _, again = self.splits(real_test=splits.reward)
        assert again.test is splits.reward


def test_large_images_make_smaller_sets():
    assert len(records.gaussian_images((1, 8, 8), seed=0)) == 32  # MAX_IMAGES, above
    assert len(records.gaussian_images((3, 224, 224), seed=0)) == records.MIN_IMAGES
