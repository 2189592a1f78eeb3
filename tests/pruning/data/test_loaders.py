from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunegym.pruning.data import Images, images_of
from prunegym.pruning.errors import DataError
from prunegym.pruning.training.finetuning import FinetuningConfig, finetune_

IMAGES, LABELS = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
        [(IMAGES[:7], LABELS[:7].int()), [IMAGES[7:], LABELS[7:]]],
        ((image[None], label[None]) for image, label in zip(IMAGES, LABELS, strict=True)),
    ],
    ids=["DataLoader", "list", "generator"],
)
def test_any_loader_becomes_images(loader):
    found = images_of(loader)
    assert torch.equal(found.images, IMAGES)
    assert torch.equal(found.labels, LABELS)
    assert found.labels.dtype == torch.int64
    assert found.labelled


def test_a_shuffling_loader_keeps_labels_with_their_images():
    found = images_of(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3, shuffle=True))
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}
    assert [label_of[image.numpy().tobytes()] for image in found.images] == found.labels.tolist()


def test_a_network_is_fine_tuned_from_a_loader_as_from_its_images():
    trained = []
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    for images in (Images(IMAGES, LABELS), images_of(loader)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        before = model[1].weight.clone()
        finetune_(model, images, FinetuningConfig(epochs=2, batch_size=5))
        assert not torch.equal(model[1].weight, before)
        trained.append(model[1].weight)
    assert torch.equal(*trained)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "gives no image"),
        ([IMAGES], r"batch 0: must be images and their labels, got a tensor [10, 1, 4, 4] of float32"),
        ([(IMAGES,)], "got 1 parts"),
        ([{"image": IMAGES}], "got dict"),
        ([(IMAGES, None)], "10 images need as many labels, a tensor of whole numbers, got NoneType"),
        ([(IMAGES, LABELS[:9])], "got a tensor [9] of int64"),
        ([(IMAGES, LABELS.float())], "got a tensor [10] of float32"),
        ([(IMAGES, LABELS), (IMAGES * float("nan"), LABELS)], "batch 1: images are NaN or infinite"),
        (
            [(IMAGES.mul(255).byte(), LABELS)],
            "normalised tensors of floats, got a tensor [10, 1, 4, 4] of uint8",
        ),
        ([([1, 2], LABELS)], "got 2 parts"),
        ([(IMAGES, LABELS), (IMAGES[:, :, :2], LABELS)], "of one size"),
    ],
)
def test_what_is_no_loader_of_labelled_images_is_refused_in_one_line(batches, words):
    with pytest.raises(DataError) as caught:
        images_of(batches)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
