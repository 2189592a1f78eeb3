from __future__ import annotations

import pytest
import torch

from pruning.data import Images, ImageSplits, check_labels
from pruning.errors import DataError


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
