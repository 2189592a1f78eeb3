from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tarfile
from dataclasses import fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from torch import nn

from prunegym.pruning.data import ImageSplits, load_splits
from prunegym.pruning.errors import DataError, PruningError
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from prunegym.pruning.optional_packages import imported

NETWORK = NetworkSpec("net", nn.Identity, (3, 32, 32), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
PARTS = [field.name for field in fields(ImageSplits) if field.name != "classes"]
TRAIN, TEST = 40, 6


def pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return md5(path)


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(params=[("cifar10", "CIFAR10", "labels", 10), ("cifar100", "CIFAR100", "fine_labels", 100)])
def files(request, tmp_path, monkeypatch):
    """A few images in the format of a data set, whose hashes torchvision is told: kind, class, labels."""
    kind, name, key, classes = request.param
    dataset = getattr(imported("torchvision.datasets", extra="zoo", purpose="the test"), name)
    folder = tmp_path / dataset.base_folder
    n_files = len(dataset.train_list)
    labels = {"train": np.arange(TRAIN) * 7 % classes, "test": np.arange(TEST) * 3 % classes}
    batches = zip(np.split(pixels(TRAIN, 0), n_files), np.split(labels["train"], n_files), strict=True)
    train = [
        [file, write(folder / file, {"data": data, key: list(map(int, part))})]
        for (file, _), (data, part) in zip(dataset.train_list, batches, strict=True)
    ]
    ((file, _),) = dataset.test_list
    test = {"data": pixels(TEST, 1), key: list(map(int, labels["test"]))}
    monkeypatch.setattr(dataset, "train_list", train)
    monkeypatch.setattr(dataset, "test_list", [[file, write(folder / file, test)]])
    names = {dataset.meta["key"]: [f"class {number}" for number in range(classes)]}
    meta = {**dataset.meta, "md5": write(folder / dataset.meta["filename"], names)}
    monkeypatch.setattr(dataset, "meta", meta)
    return kind, dataset, labels


def by_hand(flat):
    images = flat.reshape(-1, 3, 32, 32) / 255.0
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (NETWORK.mean, NETWORK.std))
    return (images - mean) / std


def original(image):
    """Return the bytes that an image was read from."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (NETWORK.mean, NETWORK.std))
    return ((image.numpy() * std + mean) * 255).round().astype(np.uint8).tobytes()


def test_images_are_normalised_and_keep_their_labels(files, tmp_path):
    kind, _, labels = files
    splits = load_splits(f"{kind}:{tmp_path}", NETWORK)
    np.testing.assert_allclose(splits.test.images, by_hand(pixels(TEST, 1)), atol=1e-6)
    assert splits.test.labels.tolist() == labels["test"].tolist()
    assert splits.classes == (10 if kind == "cifar10" else 100)
    label_of = dict(zip(map(bytes, pixels(TRAIN, 0)), labels["train"], strict=True))
    found = [getattr(splits, part) for part in PARTS[:-1]]
    assert sum(map(len, found)) == TRAIN
    for part in found:
        assert [label_of[original(image)] for image in part.images] == part.labels.tolist()


def test_a_missing_folder_says_how_to_get_it(files, tmp_path):
    kind, dataset, _ = files
    place = tmp_path / "absent"
    with pytest.raises(DataError) as caught:
        load_splits(f"{kind}:{place}", NETWORK)
    assert f"no folder {place / dataset.base_folder}; add --download to fetch it from http" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("list_name", ["train_list", "test_list"])
def test_a_damaged_file_is_neither_unpickled_nor_fetched_again_unasked(
    files, tmp_path, list_name, monkeypatch
):
    kind, dataset, _ = files
    path = tmp_path / dataset.base_folder / getattr(dataset, list_name)[-1][0]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    fetched, opened, load = [], [], pickle.load
    monkeypatch.setattr(dataset, "download", lambda self: fetched.append(self.url))
    monkeypatch.setattr(pickle, "load", lambda file, **how: opened.append(file.name) or load(file, **how))
    with pytest.raises(DataError, match=f"{dataset.base_folder} is incomplete or damaged; add --download"):
        load_splits(f"{kind}:{tmp_path}", NETWORK)
    assert path.name not in map(os.path.basename, opened)
    assert not fetched


@pytest.fixture
def archive(files, tmp_path, monkeypatch):
    """The files, packed and served where torchvision is told to fetch them from."""
    _, dataset, _ = files
    archive = tmp_path / "remote" / dataset.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / dataset.base_folder, dataset.base_folder)
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    with SilentServer(("127.0.0.1", 0), partial(Silent, directory=archive.parent)) as server:
        monkeypatch.setattr(dataset, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield archive
        server.shutdown()
        thread.join()


class SilentServer(ThreadingHTTPServer):
    """Takes it calmly when a client hangs up, as torchvision does after looking where a URL leads."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Silent(SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, *args):
        pass


def test_what_is_missing_is_downloaded_only_if_asked(files, archive, tmp_path, capfd):
    kind, _, labels = files
    with pytest.raises(DataError):
        load_splits(f"{kind}:{tmp_path / 'new'}", NETWORK)
    assert not (tmp_path / "new").exists()
    splits = load_splits(f"{kind}:{tmp_path / 'new'}", NETWORK, download=True)
    assert splits.test.labels.tolist() == labels["test"].tolist()
    archive.unlink()  # what is there is not fetched again
    for again in (False, True):
        assert len(load_splits(f"{kind}:{tmp_path / 'new'}", NETWORK, download=again).test) == TEST
    assert capfd.readouterr() == ("", "")


def test_a_download_that_fails_says_why(files, tmp_path, monkeypatch):
    kind, dataset, _ = files
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/nobody-listens")
    with pytest.raises(DataError, match=f"{dataset.__name__} cannot be downloaded to .*refused") as caught:
        load_splits(f"{kind}:{tmp_path / 'new'}", NETWORK, download=True)
    assert "\n" not in str(caught.value)


def test_another_network_size_is_refused_with_both(files, tmp_path):
    kind, _, _ = files
    with pytest.raises(DataError, match=r"\[3, 32, 32\], but digits_resnet takes \[1, 8, 8\]"):
        load_splits(f"{kind}:{tmp_path}", resolve_network("digits_resnet"))


def test_without_torchvision_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(PruningError, match=r'images of CIFAR need torchvision .* "prunegym\[zoo\]"'):
        load_splits(f"cifar10:{tmp_path}", NETWORK)
