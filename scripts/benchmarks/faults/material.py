"""What the attacked commands work on: a network of a few hundred weights, and a few images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from prunegym.pruning.networks.registry import resolve_network

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(8, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(self.c(self.b(self.a(x))).mean((2, 3)))
"""
SIDE, CLASSES = 8, 3


class Material(NamedTuple):
    """Files that commands read and never change."""

    folder: Path

    @property
    def model(self) -> str:
        """The network's name."""
        return f"{self.folder / 'net.py'}:Net"

    @property
    def weights(self) -> Path:
        """Its weights."""
        return self.folder / "weights.safetensors"

    @property
    def data(self) -> Path:
        """Images and labels."""
        return self.folder / "data.npz"

    @property
    def images(self) -> Path:
        """A folder of classes with a few of the images."""
        return self.folder / "images"

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the images and labels."""
        with np.load(self.data) as archive:
            return dict(archive)

    @property
    def shape(self) -> list[str]:
        """The flags that say what images the network takes."""
        return ["--input-size", "1", str(SIDE), str(SIDE), "--mean", "0.5", "--std", "0.25"]

    @property
    def flags(self) -> list[str]:
        """The flags that name the network and the images."""
        named = ["--model", self.model, "--weights", str(self.weights), *self.shape, "--device", "cpu"]
        return [*named, "--data", f"npz:{self.data}", "--quiet"]


def make_material(folder: Path) -> Material:
    """Write the files into a folder."""
    folder.mkdir(parents=True)
    made = Material(folder)
    (folder / "net.py").write_text(NETWORK, encoding="utf-8")
    torch.manual_seed(0)
    model = resolve_network(made.model, input_size=(1, SIDE, SIDE), mean=(0.5,), std=(0.25,)).build()
    pixels = np.random.default_rng(0).integers(0, 256, (150, SIDE, SIDE), dtype=np.uint8)
    images = (torch.from_numpy(pixels[:, None]).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        model.train()(images)  # statistics of its BatchNorms
        logits = model.eval()(images)
        model.linear.bias -= logits.mean(0)  # type: ignore[union-attr]
        labels = (logits - logits.mean(0)).argmax(1).numpy()
    labels[::6] = (labels[::6] + 1) % CLASSES
    save_file(model.state_dict(), made.weights)
    train, test = slice(110), slice(110, None)
    np.savez(
        made.data,
        train_images=pixels[train],
        train_labels=labels[train],
        test_images=pixels[test],
        test_labels=labels[test],
    )
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        part = "train" if number < 110 else "val"
        place = made.images / part / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    return made
