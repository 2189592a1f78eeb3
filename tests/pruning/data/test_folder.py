from __future__ import annotations

import os
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prunegym.pruning.data import ImageSplits, check_labels, load_splits
from prunegym.pruning.errors import DataError
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.optional_packages import imported

NETWORK = NetworkSpec("net", nn.Identity, (3, 4, 4), (0.0,) * 3, (1.0,) * 3)
PARTS = [field.name for field in fields(ImageSplits) if field.name != "classes"]
CLASSES = ("bee", "ant", "Cat")  # neither sorted nor of one case


@pytest.fixture
def place(tmp_path):
    """Images of three classes that can be told apart: number i is of the colour (i, class, part)."""
    number = 0
    for part, count in ((0, 20), (1, 4)):
        for kind, name in enumerate(CLASSES):
            folder = tmp_path / ("train", "val")[part] / name / "deeper"
            folder.mkdir(parents=True)
            for _ in range(count):
                colour = np.array([number, kind, part], dtype=np.uint8)
                image = Image.fromarray(np.broadcast_to(colour, (4, 4, 3)).copy())
                image.save((folder if number % 5 else folder.parent) / f"{97 * number % 100}.PNG")
                number += 1
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image by its name, and left alone")
    return tmp_path


def colours(images):
    """Return number, class and part of each image."""
    return (images.images[:, :, 0, 0] * 255).round().int().tolist()


def drawn(place, **settings):
    splits = load_splits(f"folder:{place}", NETWORK, **settings)
    return {part: colours(getattr(splits, part)) for part in PARTS}


def refusal(place):
    with pytest.raises(DataError) as caught:
        load_splits(f"folder:{place}", NETWORK)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_splits_are_disjoint_and_complete_and_test_images_are_those_of_val(place):
    found = drawn(place)
    everything = [number for part in PARTS for number, _, _ in found[part]]
    assert sorted(everything) == list(range(72))
    for part in PARTS:
        assert {one[2] for one in found[part]} == {int(part == "test")}
    assert all(found.values())


def test_classes_are_numbered_as_torchvision_numbers_them(place):
    datasets = imported("torchvision.datasets", extra="zoo", purpose="the test")
    theirs = datasets.ImageFolder(place / "train").class_to_idx
    splits = load_splits(f"folder:{place}", NETWORK)
    assert splits.classes == 3
    for part in PARTS:
        images = getattr(splits, part)
        assert [theirs[CLASSES[kind]] for _, kind, _ in colours(images)] == images.labels.tolist()


def test_the_files_are_those_that_torchvision_finds(place):
    datasets = imported("torchvision.datasets", extra="zoo", purpose="the test")
    theirs = [np.asarray(image)[0, 0].tolist() for image, _ in datasets.ImageFolder(place / "train")]
    found = drawn(place)
    assert sorted(theirs) == sorted(one for part in PARTS[:-1] for one in found[part])


class Backwards:
    """What os.scandir gives, the other way round."""

    def __init__(self, scandir, path):
        with scandir(path) as found:
            self.entries = iter(list(found)[::-1])

    def __iter__(self):
        return self.entries

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_the_seed_decides_the_draw_and_the_file_system_does_not(place, monkeypatch):
    first, other = drawn(place), drawn(place, seed=1)
    assert first["reward"] != other["reward"]
    monkeypatch.setattr(os, "scandir", partial(Backwards, os.scandir))
    assert drawn(place) == first


def test_batches_and_chosen_images_are_the_same_images(place):
    test = load_splits(f"folder:{place}", NETWORK).test
    whole = test.images
    assert torch.equal(torch.cat([images for images, _ in test.batches(5)]), whole)
    assert [len(images) for images, _ in test.batches(5)] == [5, 5, 2]
    assert [len(images) for images, _ in test.batches(6)] == [6, 6]
    which = torch.tensor([7, 0, 7, 3])
    assert torch.equal(test.take(which), whole[which])


def test_nothing_is_read_before_it_is_asked_for_and_what_decides_only_once(place):
    splits = load_splits(f"folder:{place}", NETWORK)
    check_labels(splits, 3)
    kept = colours(splits.reward)
    for file in place.rglob("*.PNG"):
        file.unlink()
    assert colours(splits.reward) == kept
    for part in ("calibration", "test", "train"):
        with pytest.raises(DataError, match=r"\.PNG cannot be read as an image"):
            list(getattr(splits, part).batches(4))


def test_the_first_batches_come_before_a_damaged_file(place):
    test = load_splits(f"folder:{place}", NETWORK).test
    last = max((place / "val" / "bee").rglob("*.PNG"), key=lambda file: str(file.relative_to(place)))
    last.write_bytes(b"")
    batches = test.batches(2)
    for _ in range(5):
        next(batches)
    with pytest.raises(DataError, match=f"{last} is an empty file"):
        next(batches)


def test_a_reader_can_stop_early(place):
    batches = load_splits(f"folder:{place}", NETWORK).test.batches(2)
    next(batches)
    batches.close()
    assert not list(batches)


def test_a_subset_may_be_made_of_links(place, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "links" / part).mkdir(parents=True)
        for name in CLASSES[:2]:
            (tmp_path / "links" / part / name).symlink_to(place / part / name)
    found = drawn(tmp_path / "links")
    assert sum(map(len, found.values())) == 48


def test_what_cannot_be_read_is_named_for_what_it_is(place):
    folder = place / "val" / "bee"
    for file in folder.rglob("*.PNG"):
        file.unlink()
    (folder / "a.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    test = load_splits(f"folder:{place}", NETWORK).test
    with pytest.raises(
        DataError, match=r"a\.png is a Git LFS pointer, not the file itself; run git lfs pull"
    ):
        list(test.batches(100))
    (folder / "a.png").unlink()
    os.mkfifo(folder / "a.png")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image \(it is no ordinary file\)"):
        list(test.batches(100))


class TestRefused:
    def test_no_folder(self, place):
        assert f"there is no folder {place}/absent/train; folder:DIR needs DIR/train" in refusal(
            place / "absent"
        )

    def test_no_val(self, place):
        (place / "val").rename(place / "test")
        assert f"there is no folder {place}/val" in refusal(place)

    def test_no_class_at_all(self, place, tmp_path):
        (tmp_path / "empty" / "train").mkdir(parents=True)
        assert f"{tmp_path}/empty/train holds no folder" in refusal(tmp_path / "empty")

    def test_an_empty_class(self, place):
        for part in ("train", "val"):
            (place / part / "dog").mkdir()
        assert f"{place}/train/dog holds no image (.jpg, " in refusal(place)

    @pytest.mark.parametrize(
        ("part", "words"), [("train", "val lacks the class 'dog' of"), ("val", "val has a class")]
    )
    def test_a_class_of_one_part_only(self, place, part, words):
        (place / part / "dog").mkdir()
        assert words in refusal(place)

    @pytest.mark.parametrize(
        ("link", "target"),
        [
            ("train/bee/loop", "train/bee"),
            ("train/bee/deeper/loop", "train"),
            ("train/bee/loop", ""),
            ("train/loop", "train"),
            ("train/bee/other", "train/ant"),
            ("val/bee/elsewhere", "elsewhere"),
        ],
    )
    def test_a_link_by_which_images_would_count_twice(self, place, link, target):
        (place / "elsewhere").mkdir()
        (place / "elsewhere" / "back").symlink_to(place / "elsewhere")
        if link == "train/loop":
            (place / "val" / "loop").symlink_to(place / "val")
        (place / link).symlink_to(place / target)
        assert "again, by way of a link" in refusal(place)

    def test_too_few_images(self, place):
        for file in sorted((place / "train").rglob("*.PNG")):
            if len(list(file.parents[0].glob("*.PNG"))) > 1 or file.parent.name == "deeper":
                file.unlink()
        assert f"{place}/train has 3 training images" in refusal(place)

    def test_classes_that_are_not_the_networks(self, place):
        with pytest.raises(DataError, match="of 3 classes, but the network has 1000 outputs"):
            check_labels(load_splits(f"folder:{place}", NETWORK), 1000)
