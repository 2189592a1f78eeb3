from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prunegym.pruning.data.preparation import prepared, read_image
from prunegym.pruning.errors import DataError
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from prunegym.pruning.optional_packages import imported

COLOUR = NetworkSpec("colour", nn.Identity, (3, 28, 28), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
GREY = NetworkSpec("grey", nn.Identity, (1, 28, 28), (0.25,), (0.5,))
SIZES = [(50, 60), (60, 50), (200, 40), (14, 21), (28, 64)]  # width, height


def picture(size=(50, 60), mode="RGB"):
    shape = (*size[::-1], len(mode)) if mode == "RGB" else size[::-1]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def by_hand(image, network):
    """Return an image normalised by numpy."""
    pixels = np.asarray(image, dtype=np.float64).reshape(image.height, image.width, -1) / 255
    return ((pixels - network.mean) / network.std).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_the_generic_way_is_torchvisions_resize_and_centre_crop(size):
    transforms = imported("torchvision.transforms", extra="zoo", purpose="the test")
    usual = transforms.Compose(
        [
            transforms.Resize(32),
            transforms.CenterCrop(28),
            transforms.ToTensor(),
            transforms.Normalize(COLOUR.mean, COLOUR.std),
        ]
    )
    found = prepared(picture(size), COLOUR)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, usual(picture(size)))


def test_an_image_of_the_networks_size_is_taken_as_it_is():
    image = picture((28, 28))
    np.testing.assert_allclose(prepared(image, COLOUR), by_hand(image, COLOUR), atol=1e-6)


def test_height_and_width_are_not_mixed_up():
    wide = NetworkSpec("wide", nn.Identity, (3, 20, 40), COLOUR.mean, COLOUR.std)
    assert prepared(picture((90, 50)), wide).shape == (3, 20, 40)
    image = picture((40, 20))
    np.testing.assert_allclose(prepared(image, wide), by_hand(image, wide), atol=1e-6)


@pytest.mark.parametrize(("network", "mode"), [(GREY, "L"), (COLOUR, "RGB")])
def test_colours_are_those_that_the_network_takes(tmp_path, network, mode):
    for kept in ("L", "RGB", "RGBA", "CMYK"):
        image = picture((28, 28)).convert(kept)
        image.save(tmp_path / "image.tif")
        found = read_image(tmp_path / "image.tif", network)
        np.testing.assert_allclose(found, by_hand(image.convert(mode), network), atol=1e-6)


def test_torchvisions_networks_see_images_as_their_weights_did():
    network = resolve_network("torchvision/resnet50")
    bilinear = picture((300, 400)).resize((232, int(232 * 400 / 300)), Image.Resampling.BILINEAR)
    expected = by_hand(bilinear.crop((4, 42, 228, 266)), network)
    np.testing.assert_allclose(prepared(picture((300, 400)), network), expected, atol=1e-5)


def test_timms_networks_see_images_as_their_weights_did():
    network = resolve_network("timm/resnet50.a1_in1k")  # bicubic, 95 %
    bicubic = picture((300, 400)).resize((235, int(235 * 400 / 300)), Image.Resampling.BICUBIC)
    left, top = round((235 - 224) / 2), round((bicubic.height - 224) / 2)
    expected = by_hand(bicubic.crop((left, top, left + 224, top + 224)), network)
    np.testing.assert_allclose(prepared(picture((300, 400)), network), expected, atol=1e-5)


def test_a_transform_that_gives_another_size_is_refused():
    network = NetworkSpec(
        "odd", nn.Identity, (3, 2, 2), (0,) * 3, (1,) * 3, lambda image: torch.zeros(3, 4, 4)
    )
    with pytest.raises(DataError, match=r"odd gives images \[3, 4, 4\], but its input size is \[3, 2, 2\]"):
        prepared(picture(), network)


class TestRefusedFiles:
    @staticmethod
    def refusal(path, network=COLOUR):
        with pytest.raises(DataError) as caught:
            read_image(path, network)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return str(caught.value)

    def test_no_image(self, tmp_path):
        (tmp_path / "a.jpg").write_text("not an image")
        assert "cannot be read as an image" in self.refusal(tmp_path / "a.jpg")

    def test_no_file(self, tmp_path):
        assert "No such file" in self.refusal(tmp_path / "a.jpg")

    @pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_half_an_image(self, tmp_path, ending, share):
        path = tmp_path / f"a.{ending}"
        picture().save(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert "cannot be read as an image" in self.refusal(path)

    def test_an_image_too_narrow_to_scale(self, tmp_path):
        Image.new("L", (1, 60_000)).save(tmp_path / "a.png")
        assert "is 1 by 60000 pixels, too narrow to crop" in self.refusal(tmp_path / "a.png")

    def test_more_than_8_bits(self, tmp_path):
        Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(tmp_path / "a.png")
        assert "more than 8 bits" in self.refusal(tmp_path / "a.png", GREY)

    def test_two_channels(self, tmp_path):
        picture().save(tmp_path / "a.png")
        network = NetworkSpec("two", nn.Identity, (2, 28, 28), (0.0,) * 2, (1.0,) * 2)
        assert "one or three channels, but two takes 2" in self.refusal(tmp_path / "a.png", network)
