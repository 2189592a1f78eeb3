"""Failures of the machine are told from faults of what the user gave, whatever a library makes of them."""

import copy
import errno
import resource
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from prunegym.agents.learning.policies import TENSORS, _read_tensors
from prunegym.agents.pictures.runs import read_inputs
from prunegym.envs.tasks import count_classes
from prunegym.pruning.data.npz import _read as read_arrays
from prunegym.pruning.data.preparation import read_image
from prunegym.pruning.errors import WeightsError
from prunegym.pruning.files.state import write_state
from prunegym.pruning.files.writing import written_whole
from prunegym.pruning.graph.blocks import find_blocks
from prunegym.pruning.machine_failures import (
    machine_failure,
    machine_failure_line,
    raise_machine_failure,
    written_to,
)
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.networks.weights import load_weights_
from prunegym.pruning.surgery.cutting import cut_
from prunegym.pruning.surgery.verification import trace
from prunegym.pruning.training.checkpoints import read_checkpoint
from tests.limits import limited

SHAPE = (3, 8, 8)
TOO_MUCH = 10**15
LARGE = {"weight": torch.zeros(4096)}


def caused(error, cause):
    error.__cause__ = cause
    return error


def raised_by(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever a library makes of it
        function()
    return caught.value


WRITERS = {
    "safetensors": lambda path: save_file(LARGE, path),
    "bytes": lambda path: path.write_bytes(bytes(4096)),
    "text": lambda path: path.write_text("a" * 4096),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_disk_refuses_names_the_file_that_was_to_be_written(kind, tmp_path):
    def write():
        with limited(resource.RLIMIT_FSIZE, 1000), written_whole(tmp_path / "result") as temporary:
            WRITERS[kind](temporary)

    error = raised_by(write)
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.EFBIG, str(tmp_path / "result"))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told_as_an_error_of_the_system(tmp_path):
    def write():
        with written_to(tmp_path / "gone"):
            save_file(LARGE, tmp_path / "gone" / "model.safetensors")

    assert isinstance(raised_by(write), FileNotFoundError)


READERS = {
    "npz": (lambda path: np.savez(path, np.zeros(3)), read_arrays),
    "inputs.npz": (lambda path: np.savez(path, np.zeros(3)), read_inputs),
    "png": (
        lambda path: Image.new("RGB", (8, 8)).save(path),
        lambda path: read_image(path, NetworkSpec("net", nn.Identity, SHAPE, (0.0,) * 3, (1.0,) * 3)),
    ),
    "safetensors": (lambda path: save_file(LARGE, path), partial(load_weights_, nn.Linear(1, 1))),
    "pt": (lambda path: torch.save(LARGE, path), partial(load_weights_, nn.Linear(1, 1))),
    "policy": (
        lambda path: (path.mkdir(), save_file(LARGE, path / TENSORS)),
        partial(_read_tensors, description={"weights_sha256": ""}),
    ),
    "state": (lambda path: write_state(path, {}, LARGE), lambda path: read_checkpoint(path, {})),
}


@pytest.mark.parametrize("ending", READERS)
def test_a_file_that_may_not_be_opened_is_not_called_damaged(ending, tmp_path):
    write, read = READERS[ending]
    write(tmp_path / f"file.{ending}")
    with limited(resource.RLIMIT_NOFILE, 3):
        error = raised_by(lambda: read(tmp_path / f"file.{ending}"))
    assert isinstance(error, OSError), error
    assert error.errno == errno.EMFILE


def test_a_file_that_asks_for_all_memory_may_be_damaged(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    path = tmp_path / "w.pt"
    path.write_bytes(path.read_bytes().replace(b"K\x04", b"\x8a\x06" + (2**44).to_bytes(6, "little")))
    with pytest.raises(MemoryError, match=r"w\.pt asks for more than there is, unless it is damaged"):
        load_weights_(nn.Linear(1, 1), path)


class Hungry(nn.Module):
    """A residual network that asks for more memory than any machine has, at one of all its calls."""

    calls, fatal = 0, 0

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        eat()
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(x.mean((2, 3)).view(-1, 8))  # a constant, which a cut network is asked about


class HungryInside(Hungry):
    """The same with a module that is taken for one operator, as it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.stem.append(Opaque())


class Opaque(nn.Module):
    def forward(self, x):
        eat()
        return x * 2 if x.sum() > 0 else x


def eat():
    Hungry.calls += 1
    if Hungry.calls == Hungry.fatal:
        torch.empty(TOO_MUCH)


def run_all(kind):
    """Do with a network all that runs it to find out what it is; return how often it was called."""
    torch.manual_seed(0)
    Hungry.calls, model = 0, kind().eval()
    count_classes(model, NetworkSpec("net", kind, SHAPE, (0.0,) * 3, (1.0,) * 3))
    graph = trace(model, SHAPE)
    find_blocks(model, graph)
    kept = {group.name: torch.arange(group.units // 2) for group in graph.groups}
    cut_(copy.deepcopy(model), graph, kept)
    return Hungry.calls


@pytest.mark.parametrize("kind", [Hungry, HungryInside])
def test_too_little_memory_at_any_time_is_no_fault_of_the_network(kind, monkeypatch):
    calls = run_all(kind)
    assert calls > 8
    for number in range(1, calls + 1):
        monkeypatch.setattr(Hungry, "fatal", number)
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            run_all(kind)
        assert isinstance(machine_failure(caught.value), MemoryError)


class Mute(Exception):
    def __str__(self):
        raise ValueError("it says nothing")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "x", "/a/b"),
            "cannot write /a/b: no space left on device; free some space, or",
        ),
        (OSError(errno.EDQUOT, "x"), "disk quota exceeded; free some space, or write elsewhere"),
        (OSError(errno.EROFS, "x", b"/a"), "cannot write /a: read-only file system; write elsewhere"),
        (
            OSError(errno.EMFILE, "x", "/a"),
            "cannot open /a: too many open files; raise the limit on open files",
        ),
        (OSError(errno.ENFILE, "x"), "too many open files in system; end other programs"),
        (OSError(errno.EIO, "x", "/a"), "cannot write /a: input/output error; see to the disk"),
        (
            PermissionError(errno.EACCES, "x", "/a"),
            "cannot open /a: permission denied; change its permissions",
        ),
        (OSError(errno.ENOMEM, "no room"), "ran out of memory (no room); use smaller batches or images"),
        (
            MemoryError(),
            "ran out of memory; use smaller batches or images, another --device, or a machine with",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "ran out of memory (CUDA out of memory. Tried)",
        ),
        (RuntimeError("unable to open file </a> in read-only mode: Too many (24)"), "too many open files; r"),
        (
            RuntimeError("unable to mmap 8 bytes from file </a>: Cannot (12)"),
            "ran out of memory (Cannot alloc",
        ),
        (ImportError("/a.so: failed to map segment from shared object"), "ran out of memory (/a.so: failed"),
        (SystemError("error return without exception set"), "ran out of memory (error return without"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), "ran out of memory (DefaultCPUAlloc"),
        (WeightsError("Error (os error 28)"), "no space left on device; free some space, or write elsewhere"),
        (caused(WeightsError("damaged"), OSError(errno.EMFILE, "x")), "too many open files; raise the limit"),
    ],
    ids=str,
)
def test_each_failure_of_the_machine_has_one_line_with_the_way_out(error, line):
    failure = machine_failure(error)
    assert machine_failure_line(failure).startswith(line)
    with pytest.raises(type(failure)):
        raise_machine_failure(error)


@pytest.mark.parametrize(
    "error",
    [
        Mute("out of memory"),
        ValueError("no space left"),
        FileNotFoundError(errno.ENOENT, "x", "/a"),
        RuntimeError("shapes differ"),
        WeightsError("Error (os error 2)"),
        OSError("without a number"),
        caused(WeightsError("damaged"), KeyError("a")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_all_else_is_none(error):
    assert machine_failure(error) is None
    raise_machine_failure(error)
