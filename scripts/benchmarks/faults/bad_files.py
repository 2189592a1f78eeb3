"""Bad files: images, weights, and folders of images."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunegym.scripts.benchmarks.faults.children import Place
from prunegym.scripts.benchmarks.faults.quick_commands import Case, quick
from prunegym.scripts.benchmarks.faults.world import World

CONTAINERS: Mapping[str, bytes] = {
    "empty": b"",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
    "HTML": b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "zip of nothing": b"PK\x05\x06" + bytes(18),
    "text": b"epoch,loss\n1,0.3\n",
    "zeros": bytes(5000),
}


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, place: Place) -> None:
        self._ran = str(place.ran)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._ran,)


def spoiled(data: bytes, kind: str, rng: Random, place: Place) -> bytes:
    """Return a file's bytes cut short, with a bit flipped, or replaced by something else."""
    if kind == "cut short":
        return data[: rng.randrange(1, len(data))]
    if kind == "a byte flipped":
        telling = np.flatnonzero(np.frombuffer(data, np.uint8))  # no padding
        at = int(telling[rng.randrange(len(telling))])
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == "a pickle":
        return pickle.dumps(Payload(place))
    return CONTAINERS[kind]


def data(number: int, rng: Random, world: World, place: Place) -> Case:
    """Return a command on bad images and labels in an archive."""
    arrays, file = world.material.arrays(), place.work / "data.npz"
    key = rng.choice(list(arrays))
    image, label = f"{key.split('_')[0]}_images", f"{key.split('_')[0]}_labels"
    changes: Mapping[str, Callable[[], dict[str, Any]]] = {
        "is gone": lambda: {key: None},
        "as text": lambda: {key: np.array(["cat"] * len(arrays[key]))},
        "as objects": lambda: {key: np.array([Payload(place)] * 3, dtype=object)},
        "empty": lambda: {key: arrays[key][:0]},
        "a scalar": lambda: {key: np.array(7)},
        "complex": lambda: {key: arrays[key].astype(np.complex64)},
        "true or false": lambda: {key: arrays[key].astype(bool)},
        "times": lambda: {label: arrays[label].astype("timedelta64[s]")},
        "dates": lambda: {label: arrays[label].astype("datetime64[s]")},
        "records": lambda: {key: np.zeros(len(arrays[key]), dtype=[("a", "u1"), ("b", "f4")])},
        "NaN": lambda: {key: np.full(arrays[key].shape, np.nan)},
        "huge numbers": lambda: {label: np.full(len(arrays[label]), 2**62)},
        "unsigned and huge": lambda: {label: np.full(len(arrays[label]), 2**64 - 1, np.uint64)},
        "negative": lambda: {label: np.full(len(arrays[label]), -1)},
        "one class": lambda: {label: np.zeros_like(arrays[label])},
        "five axes": lambda: {image: arrays[image][:, None, :, :, None]},
        "wrong size": lambda: {image: arrays[image][:, :5]},
        "no pixels": lambda: {image: arrays[image][:, :0]},
        "two images": lambda: {image: arrays[image][:2], label: arrays[label][:2]},
        "big-endian": lambda: {label: arrays[label].astype(">i8")},
        "in Fortran's order": lambda: {image: np.asfortranarray(arrays[image])},
    }  # fmt: skip
    kinds = (*changes, "cut short", "a byte flipped", "a pickle", *CONTAINERS)
    kind = kinds[number % len(kinds)]
    if kind in changes:
        changed = {**arrays, **changes[kind]()}
        np.savez(file, **{name: array for name, array in changed.items() if array is not None})
    else:
        file.write_bytes(spoiled(world.material.data.read_bytes(), kind, rng, place))
    verb = rng.choice(["prune", "evaluate", "finetune"])
    return Case(f"{verb}, {key} of data.npz: {kind}", [*quick(verb, world), "--data", "npz:data.npz"])


def weights(number: int, rng: Random, world: World, place: Place) -> Case:
    """Return a command on a bad file of weights."""
    state = load_file(world.material.weights)
    name = rng.choice([key for key, tensor in state.items() if tensor.is_floating_point()])
    changes: Mapping[str, Callable[[Tensor], Any]] = {
        "NaN": lambda tensor: tensor * torch.nan,
        "infinite": lambda tensor: tensor / 0,
        "huge": lambda tensor: torch.full_like(tensor, 3e38),
        "complex": lambda tensor: tensor.to(torch.complex64),
        "whole numbers": lambda tensor: tensor.to(torch.int64),
        "true or false": lambda tensor: tensor > 0,
        "of half precision": lambda tensor: tensor.half(),
        "float64": lambda tensor: tensor.double(),
        "of another shape": lambda tensor: tensor.flatten()[:1],
        "transposed": lambda tensor: tensor.transpose(0, -1),
        "meta": lambda tensor: tensor.to("meta"),
        "sparse": lambda tensor: tensor.to_sparse(),
        "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "nested": lambda tensor: torch.nested.nested_tensor([tensor.flatten()]),
        "a number": lambda tensor: 3.0,
        "a list": lambda tensor: tensor.tolist(),
        "an object": lambda tensor: Payload(place),
        "nothing": lambda tensor: None,
        "a parameter": torch.nn.Parameter,
    }
    named: Mapping[str, Any] = {
        "named [/red]": {**state, "x[/red]y": state[name]},
        "named with an escape sequence": {**state, "\x1b[31mred\x00\nblue": state[name]},
        "named by a number": {**dict[Any, Tensor](state), 7: state[name]},
        "wrapped": {"model": {"state_dict": {"net": state}}},
        "a whole network": torch.nn.Linear(2, 2),
    }
    kinds = (*changes, *named, "cut short", "a byte flipped", "a pickle", *CONTAINERS, "a folder", "as .th")
    kind = kinds[number % len(kinds)]
    file = place.work / (
        "weights.safetensors" if rng.random() < 0.3 and kind not in changes else "weights.pt"
    )
    if kind in changes:
        torch.save({**state, name: changes[kind](state[name])}, file)
    elif kind in named:
        torch.save(named[kind], file)
    elif kind == "a folder":
        file.mkdir()
    elif kind == "as .th":
        save_file(state, file)
    else:
        file.write_bytes(spoiled(world.material.weights.read_bytes(), kind, rng, place))
    verb = rng.choice(["prune", "evaluate", "latency"])
    told = f"{verb}, {name} of {file.name}: {kind}"
    return Case(told, [*quick(verb, world), "--weights", file.name])


def images(number: int, rng: Random, world: World, place: Place) -> Case:
    """Return a command on a bad folder of images."""
    folder = place.work / "images"
    shutil.copytree(world.material.images, folder)
    classes = sorted((folder / "train").iterdir())
    one = rng.choice(classes)
    file = rng.choice(sorted(one.iterdir()))
    changes: Mapping[str, Callable[[], object]] = {
        "a link to its parent": lambda: (one / "loop").symlink_to(folder),
        "a link to itself": lambda: (one / "loop.png").symlink_to(one / "loop.png"),
        "a link to nothing": lambda: (one / "gone.png").symlink_to("nothing.png"),
        "a link to a device": lambda: (one / "zero.png").symlink_to("/dev/zero"),
        "a class that is a link": lambda: (folder / "train" / "more").symlink_to(one),
        "an image cut short": lambda: file.write_bytes(file.read_bytes()[:40]),
        "text as an image": lambda: file.write_text("no image"),
        "an empty image": lambda: file.write_bytes(b""),
        "a folder named as an image": lambda: (one / "folder.png").mkdir(),
        "an empty class": lambda: (folder / "train" / "empty").mkdir(),
        "no validation": lambda: shutil.rmtree(folder / "val"),
        "a name that is no UTF-8": lambda: shutil.copy(file, f"{one}/x\udcff.png"),
        "a name with markup": lambda: shutil.copy(file, one / "[red]x.png"),
        "a class with an escape sequence": lambda: one.rename(one.with_name("\x1b[31m")),
        "a bomb": lambda: file.write_bytes(_png(30_000)),
        "a pickle": lambda: file.write_bytes(pickle.dumps(Payload(place))),
        "a pipe": lambda: os.mkfifo(one / "pipe.png"),
    }  # fmt: skip
    kinds = list(changes)
    kind = kinds[number % len(kinds)]
    changes[kind]()
    return Case(f"prune, a folder of images with {kind}", [*quick("prune", world), "--data", "folder:images"])


def _png(side: int) -> bytes:
    """Return a picture of many pixels that is small as a file."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "png")
    return buffer.getvalue()


NAMES = (
    *("[/red]", "[red]", "\x1b[31mred", "a\nb", "a\tb", "x\udcff", "\u0130", "\U0001f600", "e\u0301", "-x"),
    *("--", "a b", "a,b", "a:b", "a=b", "%s", "$HOME", "'", '"', "#", "~", "*", "x" * 200, ".hidden", "\\"),
)


def odd_name(number: int, rng: Random, world: World, place: Place) -> Case:
    """Return a command on a good file, or with a folder for results, whose name is odd."""
    name, known, made = NAMES[number % len(NAMES)], world.known, world.material
    flags: Mapping[str, tuple[str, Callable[[], str]]] = {
        "--model": ("prune", lambda: f"{_copied(made.folder / 'net.py', place, f'{name}.py')}:Net"),
        "--out": ("prune", lambda: name),
        "--weights": ("prune", lambda: _copied(made.weights, place, f"{name}.safetensors")),
        "--data": ("prune", lambda: f"npz:{_copied(made.data, place, f'{name}.npz')}"),
        "--plan": ("prune", lambda: _copied(Path(known["plan"]), place, name)),
        "--compressed": ("finetune", lambda: _copied(Path(known["compressed"]), place, name)),
    }
    flag = list(flags)[(number + number // len(NAMES)) % len(flags)]
    verb, value = flags[flag]
    return Case(f"{verb} {flag}, named {ascii(name)[:60]}", [*quick(verb, world), f"{flag}={value()}"])


def _copied(source: Path, place: Place, name: str) -> str:
    target = place.work / name
    target.parent.mkdir(exist_ok=True)  # a name of markup may hold a slash
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return name
