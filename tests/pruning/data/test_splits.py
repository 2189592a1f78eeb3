from __future__ import annotations

import pytest
import torch

import prunegym.pruning.data.splits
from prunegym.pruning.data import Images, ImageSplits, check_labels
from prunegym.pruning.errors import DataError


@pytest.mark.parametrize(
    ("label", "classes", "right"), [(9, 10, True), (10, 10, False), (-1, 10, False), (1, 1, False)]
)
def test_labels_are_checked_against_the_number_of_outputs(label, classes, right):
    one, checked = (Images(torch.zeros(1, 1, 1, 1), torch.tensor([value])) for value in (0, label))
    splits = ImageSplits(train=one, calibration=one, reward=checked, validation=one, test=one)
    if right:
        check_labels(splits, classes)
    else:
        with pytest.raises(DataError, match=rf"\[0, {classes}\).*found {label} among the reward images"):
            check_labels(splits, classes)


@pytest.mark.parametrize(("named", "outputs", "right"), [(2, 2, True), (2, 3, False), (None, 3, True)])
def test_named_classes_must_be_the_networks_own(named, outputs, right):
    one = Images(torch.zeros(1, 1, 1, 1), torch.tensor([1]))
    splits = ImageSplits(train=one, calibration=one, reward=one, validation=one, test=one, classes=named)
    if right:
        check_labels(splits, outputs)
    else:
        with pytest.raises(DataError, match="of 2 classes, but the network has 3 outputs"):
            check_labels(splits, outputs)


class Counting:
    """Images of files, each filled with its number; remembers which were read."""

    def __init__(self, count, first=0):
        self.count, self.first = count, first
        self.read = []

    def __getitem__(self, which):
        self.read += which.tolist()
        return (self.first + which.float()).view(-1, 1, 1, 1)

    def batches(self, batch_size):
        for which in torch.arange(self.count).split(batch_size):
            yield self[which]


def splits_of(reward, train):
    """Splits whose training images are numbered from 100."""
    one = Images(torch.zeros(1, 1, 1, 1), torch.tensor([1]))
    source = Counting(train, first=100)
    return source, ImageSplits(
        train=Images(source, 100 + torch.arange(train)),
        calibration=one,
        reward=Images(Counting(reward), torch.arange(reward), held=True),
        validation=one,
        test=one,
    )


@pytest.mark.parametrize(("train", "expected"), [(50, 15), (4, 4)])
def test_plans_are_scored_on_draws_of_the_reward_images_and_three_times_as_many_others(train, expected):
    source, splits = splits_of(5, train)
    numbers = [*range(5), *range(100, 100 + expected)]
    for _ in range(2):  # held: read once
        found = splits.to_draw_from
        assert found.images.flatten().tolist() == found.labels.tolist() == numbers
    assert source.read == list(range(expected))


def test_no_more_are_drawn_from_than_fit_into_memory(monkeypatch):
    monkeypatch.setattr(prunegym.pruning.data.splits, "_DRAWN_BYTES", 7 * 4)
    assert len(splits_of(5, 50)[1].to_draw_from) == 7
    for bytes_ in (5 * 4, 1):
        monkeypatch.setattr(prunegym.pruning.data.splits, "_DRAWN_BYTES", bytes_)
        source, splits = splits_of(5, 50)
        assert splits.to_draw_from.labels.tolist() == [0, 1, 2, 3, 4]
        assert source.read == []
