import zipfile
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from prunegym.pruning.data import ImageSplits, check_labels, load_splits
from prunegym.pruning.errors import DataError
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network

COLOUR = NetworkSpec("colour", nn.Identity, (3, 4, 5), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
GREY = NetworkSpec("grey", nn.Identity, (1, 4, 5), (0.0,), (1.0,))
PARTS = [field.name for field in fields(ImageSplits) if field.name != "classes"]


def arrays(count=60, shape=(4, 5, 3), **replaced):
    """Images that can be told apart: the first two pixels of image i spell i; test images come last."""
    images = np.random.RandomState(0).randint(0, 256, (count + 10, *shape)).astype(np.uint8)
    flat = images.reshape(count + 10, -1)
    flat[:, 0], flat[:, 1] = np.arange(count + 10) % 256, np.arange(count + 10) // 256
    labels = (np.arange(count + 10) % 10).astype(np.uint8)
    made = {
        "train_images": images[:count],
        "train_labels": labels[:count],
        "test_images": images[count:],
        "test_labels": labels[count:],
    }
    return {key: value for key, value in (made | replaced).items() if value is not None}


def npz(folder, **content):
    path = folder / "images.npz"
    np.savez(path, **content)
    return path


def numbers(images):
    """Recover which images these are, of the grey network's."""
    pixels = (images.images.flatten(1)[:, :2] * 255).round().long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def refusal(path, network=COLOUR):
    with pytest.raises(DataError) as caught:
        load_splits(f"npz:{path}", network)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


class TestNpz:
    def test_colour_images_are_normalised_channel_by_channel(self, tmp_path):
        content = arrays()
        test = load_splits(f"npz:{npz(tmp_path, **content)}", COLOUR).test
        assert (test.images.dtype, test.labels.dtype) == (torch.float32, torch.int64)
        wanted = (content["test_images"] / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
        np.testing.assert_allclose(test.images, wanted.transpose(0, 3, 1, 2), atol=1e-6)
        assert test.labels.tolist() == content["test_labels"].tolist()

    @pytest.mark.parametrize("count", [4, 5, 60, 2500])
    def test_splits_are_disjoint_and_complete(self, tmp_path, count):
        splits = load_splits(f"npz:{npz(tmp_path, **arrays(count, (4, 5)))}", GREY)
        found = [number for part in PARTS for number in numbers(getattr(splits, part))]
        assert sorted(found) == list(range(count + 10))
        assert sorted(numbers(splits.test)) == list(range(count, count + 10))
        assert all(len(getattr(splits, part)) >= 1 for part in PARTS)
        for part in PARTS:
            images = getattr(splits, part)
            assert [number % 10 for number in numbers(images)] == images.labels.tolist()

    def test_sizes_are_the_stated_ones_where_there_are_images_enough(self, tmp_path):
        splits = load_splits(f"npz:{npz(tmp_path, **arrays(4000, (4, 5)))}", GREY)
        assert [len(getattr(splits, part)) for part in PARTS] == [1976, 512, 512, 1000, 10]

    def test_sizes_shrink_in_proportion_where_there_are_few(self, tmp_path):
        splits = load_splits(f"npz:{npz(tmp_path, **arrays(1000, (4, 5)))}", GREY)
        # three quarters of 1000 are held out, as 512 : 512 : 1000
        assert [len(getattr(splits, part)) for part in PARTS] == [252, 189, 189, 370, 10]

    def test_the_seed_decides_the_draw(self, tmp_path):
        spec = f"npz:{npz(tmp_path, **arrays(60, (4, 5)))}"
        first, again, other = (numbers(load_splits(spec, GREY, seed=seed).reward) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_too_few_images_are_refused(self, tmp_path):
        assert "has 3 training images" in refusal(npz(tmp_path, **arrays(3)))

    @pytest.mark.parametrize(
        ("replaced", "words"),
        [
            (
                {"train_labels": None, "test_labels": None},
                "lacks train_labels, test_labels; it holds train_images",
            ),
            ({"train_images": np.zeros((60, 4, 5, 3))}, "must be uint8 in 0..255, but is float64"),
            (
                {"test_images": np.full((10, 4, 5, 3), np.nan)},
                "test_images must be uint8 in 0..255, but is float64 and holds NaN",
            ),
            ({"train_images": np.zeros((60, 60), np.uint8)}, r"got [60, 60]"),
            ({"train_images": np.zeros(60, np.uint8)}, r"got [60]"),
            (
                {"train_images": np.zeros((60, 5, 4, 3), np.uint8)},
                "are [3, 5, 4], but colour takes [3, 4, 5]",
            ),
            ({"train_images": np.zeros((60, 4, 5), np.uint8)}, "are [1, 4, 5], but colour takes [3, 4, 5]"),
            ({"train_labels": np.zeros(60)}, "train_labels must be whole numbers [N], but is float64 [60]"),
            ({"train_labels": np.zeros((60, 1), int)}, "must be whole numbers [N], but is int64 [60, 1]"),
            ({"train_labels": np.zeros(59, int)}, "there are 60 train_images, but 59 train_labels"),
            ({"test_labels": np.zeros(0, int)}, "test_labels is empty"),
            ({"train_labels": np.array([None] * 60)}, "train_labels holds Python objects"),
            ({"test_images": np.full((10, 4, 5, 3), "x")}, "must be uint8 in 0..255, but is <U1"),
            ({"train_labels": np.full(60, "x")}, "train_labels must be whole numbers [N], but is <U1 [60]"),
            ({"train_labels": np.zeros(60, "m8[s]")}, "must be whole numbers [N], but is timedelta64[s]"),
            ({"test_labels": np.zeros(10, "M8[s]")}, "must be whole numbers [N], but is datetime64[s]"),
            ({"test_labels": np.zeros(10, bool)}, "must be whole numbers [N], but is bool"),
            ({"test_labels": np.zeros(10, complex)}, "must be whole numbers [N], but is complex128"),
        ],
    )
    def test_malformed_arrays_are_refused_in_one_line(self, tmp_path, replaced, words):
        assert words in refusal(npz(tmp_path, **arrays(**replaced)))

    def test_text_in_the_place_of_an_array_is_named(self, tmp_path):
        path = npz(tmp_path, **arrays(train_labels=None))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("train_labels", "0 1 2 3")
        assert "train_labels is no array" in refusal(path)

    def test_another_file_is_named_for_what_it_is(self, tmp_path):
        (tmp_path / "pointer.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
        assert "is a Git LFS pointer" in refusal(tmp_path / "pointer.npz")
        assert "is a folder; name the .npz file in it" in refusal(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path):
        assert "there is no data file" in refusal(tmp_path / "absent.npz")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
    def test_a_truncated_file_is_called_so(self, tmp_path, share):
        path = npz(tmp_path, **arrays())
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert "is truncated, damaged" in refusal(path)

    def test_a_flipped_byte_in_an_image_is_noticed(self, tmp_path):
        path = npz(tmp_path, **arrays())
        content = bytearray(path.read_bytes())
        content[1000] ^= 0xFF
        path.write_bytes(content)
        assert "is truncated, damaged" in refusal(path)

    def test_a_single_array_is_no_archive(self, tmp_path):
        np.save(tmp_path / "one.npy", np.zeros(3))
        assert "no archive of plain arrays" in refusal(tmp_path / "one.npy")

    def test_real_images_load(self, data_file):
        splits = load_splits(
            f"npz:{data_file('cifar10/cifar10_subset.npz')}", resolve_network("cifar_resnet20")
        )
        check_labels(splits, 10)
        assert len(splits.test) == 500
        assert splits.train.images.std() == pytest.approx(1.1, abs=0.2)
