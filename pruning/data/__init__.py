"""Images with labels, in disjoint splits for learning, for choosing and for reporting."""

from prunegym.pruning.data import cifar, digits, folder, npz
from prunegym.pruning.data.images import Images, ImageSource, joined
from prunegym.pruning.data.kinds import KINDS, Kind, Request, absolute, load_splits
from prunegym.pruning.data.loaders import checked, images_of
from prunegym.pruning.data.splits import ImageSplits, check_labels

__all__ = [
    "KINDS",
    "ImageSource",
    "ImageSplits",
    "Images",
    "Kind",
    "Request",
    "absolute",
    "check_labels",
    "checked",
    "cifar",
    "digits",
    "folder",
    "images_of",
    "joined",
    "load_splits",
    "npz",
]
