from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from prunegym.pruning.data import ImageSplits, load_splits
from prunegym.pruning.errors import DataError
from prunegym.pruning.networks.registry import resolve_network

PARTS = [field.name for field in fields(ImageSplits) if field.name != "classes"]


@pytest.fixture(scope="module")
def splits():
    return load_splits("digits", resolve_network("digits_resnet"))


class TestDigits:
    def test_every_image_is_in_one_split_only(self, splits):
        network = resolve_network("digits_resnet")
        found = []
        for part in PARTS:
            pixels = getattr(splits, part).images * network.std[0] + network.mean[0]
            found += [row.round().int().numpy().tobytes() for row in pixels.flatten(1) * 16]
        wanted = [row.astype(np.int32).tobytes() for row in load_digits().data]
        assert sorted(found) == sorted(wanted)

    def test_images_keep_their_labels(self, splits):
        network = resolve_network("digits_resnet")
        bunch = load_digits()
        label_of = {
            row.astype(np.int32).tobytes(): label for row, label in zip(bunch.data, bunch.target, strict=True)
        }
        pixels = ((splits.reward.images * network.std[0] + network.mean[0]) * 16).round().int()
        assert [label_of[row.numpy().tobytes()] for row in pixels.flatten(1)] == splits.reward.labels.tolist()

    def test_sizes_are_the_stated_ones_and_every_class_has_its_share(self, splits):
        sizes = {part: len(getattr(splits, part)) for part in PARTS}
        assert sizes == {"train": 645, "calibration": 247, "reward": 249, "validation": 249, "test": 407}
        for part in PARTS:
            counts = getattr(splits, part).labels.bincount()
            assert counts.max() - counts.min() <= 3

    def test_the_split_ignores_the_seed(self, splits):
        again = load_splits("digits", resolve_network("digits_resnet"), seed=5)
        assert torch.equal(again.train.images, splits.train.images)

    def test_training_images_are_standardised(self, splits):
        assert abs(splits.train.images.mean()) < 0.01
        assert splits.train.images.std() == pytest.approx(1, abs=0.01)

    def test_another_network_size_is_refused_with_both(self):
        with pytest.raises(DataError, match=r"\[1, 8, 8\], but cifar_resnet20 takes \[3, 32, 32\]"):
            load_splits("digits", resolve_network("cifar_resnet20"))
