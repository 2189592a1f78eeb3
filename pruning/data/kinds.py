"""Images by name: the kinds of data there are. A registry: add one function to add a kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunegym.pruning.data.splits import ImageSplits
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.registry import Registry, unknown_name


@dataclass(frozen=True)
class Request:
    """A request for images: everything but their place."""

    network: NetworkSpec  # decides the images' shape and normalisation
    seed: int  # of the draw of the calibration, reward and validation images
    download: bool  # fetch missing files, where the kind of data can be downloaded
    progress: bool  # show bars on stderr if that is a terminal


Kind = Callable[[Path, Request], ImageSplits]  # loads the images in a place

KINDS: Registry[Kind] = Registry("kind of data")  # by `name:PLACE`, or `name` alone where it needs no place


def load_splits(
    spec: str, network: NetworkSpec, *, seed: int = 0, download: bool = False, progress: bool = False
) -> ImageSplits:
    """Load a data set, split it, and normalise it as `network` expects.

    Follow it with `check_labels` once the network's number of classes is known.

    Args:
        spec: `digits` (scikit-learn's, always split the same way), `npz:FILE`, `cifar10:DIR`, `cifar100:DIR`
            (torchvision's files) or `folder:DIR` (`train/` and `val/`, in each a folder of images per class).
        network: decides the images' shape and normalisation.
        seed: the seed of the draw of the calibration, reward and validation images.
        download: fetch what is missing, of `cifar10` and `cifar100`.
        progress: show bars on stderr if that is a terminal.

    Raises:
        UnknownNameError: no such kind of data.
        DataError: the data is missing, damaged, or does not fit the network.
        PruningError: a package is missing.
    """
    kind, _, place = spec.partition(":")
    for name in KINDS:
        known, _, needs_place = name.partition(":")
        if kind == known and bool(place) == bool(needs_place):
            return KINDS[name](Path(os.path.expanduser(place)), Request(network, seed, download, progress))
    raise unknown_name("kind of data", spec, list(KINDS))


def absolute(spec: str) -> str:
    """Return the name of images with an absolute path, valid in any working directory."""
    kind, _, place = spec.partition(":")
    return f"{kind}:{Path(os.path.expanduser(place)).absolute()}" if place else spec
