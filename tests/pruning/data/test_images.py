from __future__ import annotations

import torch

from pruning.data import Images, joined


def test_batches_keep_the_order_and_lose_nothing():
    images = Images(torch.arange(5.0).view(5, 1, 1, 1), torch.arange(5))
    batches = list(images.batches(2))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2, 3], [4]]
    assert [x.flatten().tolist() for x, _ in batches] == [[0.0, 1.0], [2.0, 3.0], [4.0]]
    assert len(images) == 5


def test_parts_are_joined_in_order_and_one_without_true_labels_leaves_none_true():
    images, labels = torch.arange(6.0).view(3, 1, 1, 2), torch.tensor([2, 0, 1])
    first, second = Images(images[:1], labels[:1]), Images(images[1:], labels[1:])
    whole = joined(first, second)
    assert torch.equal(whole.images, images)
    assert torch.equal(whole.labels, labels)
    assert whole.labelled
    assert not joined(first, Images(images[1:], labels[1:], labelled=False)).labelled
