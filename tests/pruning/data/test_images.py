from __future__ import annotations

import pytest
import torch

from prunegym.pruning.data import Images, joined

NUMBERED = torch.arange(7.0).view(7, 1, 1, 1).expand(-1, 2, 3, 3).contiguous()  # image i is all i


class Watched:
    """A source that notes how many images it was asked for."""

    def __init__(self, images):
        self.images, self.given = images, 0

    def __getitem__(self, which):
        self.given += len(which)
        return self.images[which]

    def batches(self, batch_size):
        for batch in self.images.split(batch_size):
            self.given += len(batch)
            yield batch


def watched(first, last, **settings):
    source = Watched(NUMBERED[first:last])
    return source, Images(source, torch.arange(first, last), **settings)


def values(images):
    assert torch.equal(images, images[:, :1, :1, :1].expand_as(images))
    return images[:, 0, 0, 0].tolist()


def test_batches_keep_the_order_and_lose_nothing():
    images = Images(torch.arange(5.0).view(5, 1, 1, 1), torch.arange(5))
    batches = list(images.batches(2))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2, 3], [4]]
    assert [x.flatten().tolist() for x, _ in batches] == [[0.0, 1.0], [2.0, 3.0], [4.0]]
    assert len(images) == 5


@pytest.mark.parametrize(("side", "most"), [(8, 256), (96, 256), (224, 56), (6000, 1)])
def test_batches_are_small_where_images_are_large(side, most):
    pixels = torch.zeros(1, 3, 1, 1).expand(300, 3, side, side)  # takes no memory
    for source in (pixels, Watched(pixels)):
        _, labels = next(Images(source, torch.zeros(300)).batches())
        assert len(labels) == most


def test_what_is_read_is_what_would_be_in_memory():
    source, images = watched(0, 7)
    assert source.given == 0  # nothing before it is asked for
    assert values(images.take(torch.tensor([5, 0, 5]))) == [5, 0, 5]
    assert source.given == 3
    assert [(values(x), labels.tolist()) for x, labels in images.batches(4)] == [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([4, 5, 6], [4, 5, 6]),
    ]
    assert values(images.images) == list(range(7))
    assert source.given == 3 + 7 + 7


def test_what_is_held_is_read_once_when_the_first_is_asked_for():
    source, images = watched(0, 7, held=True)
    assert source.given == 0
    assert values(images.take(torch.tensor([6, 1]))) == [6, 1]
    assert [values(x) for x, _ in images.batches(5)] == [[0, 1, 2, 3, 4], [5, 6]]
    assert values(images.images) == list(range(7))
    assert source.given == 7


def test_many_batches_are_read_into_one_tensor():
    pixels = torch.rand(600, 1, 2, 2)
    assert torch.equal(Images(Watched(pixels), torch.zeros(600)).images, pixels)


def test_parts_are_joined_in_order_and_one_without_true_labels_leaves_none_true():
    images, labels = torch.arange(6.0).view(3, 1, 1, 2), torch.tensor([2, 0, 1])
    first, second = Images(images[:1], labels[:1]), Images(images[1:], labels[1:])
    whole = joined(first, second)
    assert torch.equal(whole.images, images)
    assert torch.equal(whole.labels, labels)
    assert whole.labelled
    assert not joined(first, Images(images[1:], labels[1:], labelled=False)).labelled


@pytest.mark.parametrize("which", [[6, 0, 3, 2, 5, 0], [4], [3, 3]])
def test_joined_images_come_from_where_each_part_has_them(which):
    read, first = watched(0, 3)
    held, third = watched(5, 7, held=True)
    whole = joined(first, Images(NUMBERED[3:5], torch.arange(3, 5)), third)
    assert read.given == held.given == 0
    assert values(whole.take(torch.tensor(which))) == which
    assert read.given == sum(number < 3 for number in which)
    assert held.given == (2 if max(which) >= 5 else 0)
    assert whole.labels.tolist() == list(range(7))
    assert [values(x) for x, _ in whole.batches(2)] == [[0, 1], [2, 3], [4, 5], [6]]
