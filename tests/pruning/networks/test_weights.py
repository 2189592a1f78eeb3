import argparse
import gzip
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from prunegym.pruning.errors import WeightsError
from prunegym.pruning.networks.weights import load_weights_


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (os.mkdir, (str(self.victim),))


def make_model():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3), bn=nn.BatchNorm2d(4), linear=nn.Linear(4, 2)))


def good_state():
    torch.manual_seed(1)
    return make_model().state_dict()


def assert_loads(path, state):
    model = make_model()
    load_weights_(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def refusal(path):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights_(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed"
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def saved(data, path):
    torch.save(data, path)
    return path


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_usual_wrappings_are_taken_off(tmp_path, wrapper, prefix):
    state = good_state()
    data = {prefix + name: value for name, value in state.items()}
    path = saved(data if wrapper is None else {"epoch": 3, wrapper: data}, tmp_path / "w.pt")
    assert_loads(path, state)


def test_safetensors_and_old_style_files_load(tmp_path):
    state = good_state()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.th", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "w.safetensors", state)
    assert_loads(tmp_path / "w.th", state)


def test_a_submodule_called_module_keeps_its_name(tmp_path):
    model = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    target = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    load_weights_(target, saved(model.state_dict(), tmp_path / "w.pt"))
    assert torch.equal(target.module.weight, model.module.weight)


def test_the_batch_counter_may_be_missing(tmp_path):
    state = good_state()
    assert_loads(saved({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "w.pt"), state)


def test_a_missing_file_is_named(tmp_path):
    assert "there is no weights file" in refusal(tmp_path / "absent.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "old.th"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_called_so(tmp_path, name, share):
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(good_state(), path)
    else:
        torch.save(good_state(), path, _use_new_zipfile_serialization=name == "w.pt")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "is truncated, damaged" in refusal(path)


@pytest.mark.parametrize("content", [b"just some text", b"PK\x03\x04 not really"])
def test_other_files_are_called_damaged(tmp_path, content):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    assert "no weights file" in refusal(path)


@pytest.mark.parametrize("kind", ["archive", "old", "plain pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, kind):
    victim, path = tmp_path / "victim", tmp_path / "w.pt"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Malice(victim)))
    else:
        torch.save(Malice(victim), path, _use_new_zipfile_serialization=kind == "archive")
    assert "could run its code" in refusal(path)
    assert not victim.exists()


def test_a_whole_model_is_refused_with_the_way_out(tmp_path):
    assert "torch.save(model.state_dict(), FILE)" in refusal(saved(make_model(), tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3, "loss": 0.5}, "no tensors: epoch, loss"),
        ({}, "it holds nothing"),
        ({"state_dict": {}}, "it holds nothing"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, data, words):
    assert words in refusal(saved(data, tmp_path / "w.pt"))


def test_names_that_do_not_fit_are_listed_both_ways(tmp_path):
    state = good_state()
    state["head.weight"] = state.pop("linear.weight")
    message = refusal(saved(state, tmp_path / "w.pt"))
    assert "missing: linear.weight; unexpected: head.weight" in message


def test_a_long_list_of_names_is_cut(tmp_path):
    message = refusal(saved({f"x{i}": torch.zeros(1) for i in range(12)}, tmp_path / "w.pt"))
    assert "unexpected: x0, x1, x2, x3, x4 and 7 more" in message


def test_shapes_that_differ_are_shown(tmp_path):
    state = good_state() | {"linear.weight": torch.zeros(3, 4)}
    assert "linear.weight is [3, 4], the network has [2, 4]" in refusal(saved(state, tmp_path / "w.pt"))


@pytest.mark.parametrize("name", ["conv.weight", "linear.bias", "bn.running_mean", "bn.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused(tmp_path, name, value):
    state = good_state()
    state[name].view(-1)[-1] = value
    assert f"{name} holds NaN or infinity" in refusal(saved(state, tmp_path / "w.pt"))


def test_a_value_too_large_for_the_network_is_refused(tmp_path):
    state = good_state() | {"linear.bias": torch.tensor([1e300, 0.0], dtype=torch.float64)}
    assert "linear.bias holds NaN or infinity" in refusal(saved(state, tmp_path / "w.pt"))


def test_a_negative_variance_is_refused(tmp_path):
    state = good_state()
    state["bn.running_var"][2] = -0.5
    assert "bn.running_var holds a negative variance (-0.5)" in refusal(saved(state, tmp_path / "w.pt"))


def test_a_folder_is_no_weights_file(tmp_path):
    assert "is a folder; name the weights file in it" in refusal(tmp_path)


def zipped(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights/w.pt", "...")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "run git lfs pull"),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "is a web page; download the file itself"),
        (lambda path: Image.new("L", (8, 8)).save(path, "png"), "is a PNG image"),
        (lambda path: path.write_bytes(gzip.compress(b"weights")), "is compressed by gzip; unpack it"),
        (lambda path: path.touch(), "is an empty file"),
        (zipped, "is a zip archive that torch.save did not write"),
        (lambda path: path.write_text('{"error": "not found"}'), "is truncated, damaged, or no weights file"),
    ],
)
def test_another_file_is_named_for_what_it_is(tmp_path, name, write, words):
    write(tmp_path / name)
    assert words in refusal(tmp_path / name)


def test_a_scripted_network_is_refused_with_the_way_out(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(make_model()).save(tmp_path / "w.pt")
    assert "is a TorchScript archive; save the state dict alone" in refusal(tmp_path / "w.pt")


def test_what_a_file_is_tells_its_content_and_not_its_name(tmp_path):
    state = good_state()
    save_file(state, tmp_path / "w.pt")
    assert_loads(tmp_path / "w.pt", state)
    assert_loads(saved(state, tmp_path / "w.safetensors"), state)


@pytest.mark.filterwarnings("ignore")  # torch calls some of these a prototype
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: torch.quantize_per_tensor(torch.ones(2, 4), 0.1, 0, torch.qint8),
            "is quantized, not of floats",
        ),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(4)]), "is nested"),
        (
            lambda: torch.zeros(2, 4, device="meta"),
            "is without values, since it was saved on the meta device",
        ),
        (lambda: torch.zeros(2, 4, dtype=torch.complex64), "is complex, not of floats"),
        (lambda: torch.zeros(2, 4, dtype=torch.bool), "is of truth values, not of floats"),
        (lambda: torch.zeros(2, 4, dtype=torch.int8), "is of whole numbers, not of floats"),
        (lambda: torch.zeros(2, 4).to_sparse(), "is sparse"),
        (lambda: torch.zeros(2, 4).to_sparse_csr(), "is sparse"),
    ],
)
def test_a_tensor_of_another_kind_is_named(tmp_path, make, words):
    message = refusal(saved(good_state() | {"linear.weight": make()}, tmp_path / "w.pt"))
    assert f"linear.weight {words}; save plain tensors" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_precision_load(tmp_path, dtype):
    state = good_state() | {"linear.weight": torch.ones(2, 4)}
    state["bn.num_batches_tracked"] += 3
    data = {
        name: value.to(dtype) if name in ("linear.weight", "bn.num_batches_tracked") else value
        for name, value in state.items()
    }
    assert_loads(saved(data, tmp_path / "w.pt"), state)


def test_a_module_that_asks_for_the_version_of_what_it_loads_is_told(tmp_path):
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            assert local_metadata["version"] == 2
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    model = Versioned(3, 2)
    load_weights_(model, tmp_path / "w.safetensors")
    assert torch.equal(model.weight, torch.ones(2, 3))


NESTS = {
    "an average": lambda state: {"model_ema": state, "epoch": 5},
    "two": lambda state: {"state_dict": state, "state_dict_ema": {"x": torch.zeros(1)}},
    "one in another": lambda state: {"model": {"state_dict": state}},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "compiled for several GPUs": lambda state: {f"module._orig_mod.{name}": v for name, v in state.items()},
    "a trainer's attribute": lambda state: {"state_dict": {f"model.{name}": v for name, v in state.items()}},
    "with what was asked": lambda state: {"weights": state, "args": argparse.Namespace(lr=0.1)},
    "with numbers of numpy": lambda state: {"net": state, "best": np.float64(0.3), "n": np.int32(4)},
}


@pytest.mark.parametrize("nest", NESTS)
def test_weights_are_found_where_trainers_put_them(tmp_path, nest):
    state = good_state()
    torch.save(NESTS[nest](state), tmp_path / "w.pt")
    assert_loads(tmp_path / "w.pt", state)


def test_counters_among_the_weights_are_ignored_with_a_note(tmp_path, caplog):
    state = good_state()
    counters = {
        "total_ops": torch.zeros(1),
        "conv.total_params": torch.zeros(1),
        "n_averaged": torch.tensor(3),
    }
    torch.save({**state, **counters}, tmp_path / "w.pt")
    assert_loads(tmp_path / "w.pt", state)
    assert caplog.messages == [
        f"{tmp_path / 'w.pt'}: ignored total_ops, conv.total_params, n_averaged, which count something and "
        "are no weights"
    ]


def test_a_whole_module_is_named_by_its_class(tmp_path):
    torch.save(make_model(), tmp_path / "w.pt")
    line = refusal(tmp_path / "w.pt")
    assert "holds more than tensors (torch.nn.modules.container.Sequential), and loading it could run" in line


@pytest.mark.parametrize(
    ("renamed", "hint"),
    [
        (
            lambda name: f"backbone.{name}" if name != "linear.bias" else "x",
            "; names there begin with 'backbone.'",
        ),
        (
            lambda name: name.replace("linear", "linear1"),
            "; is linear1.weight there what is linear.weight here?",
        ),
        (lambda name: name if "linear" not in name else f"{ord(name[-1])}", "unexpected: 116, 115"),
    ],
)
def test_names_that_do_not_fit_are_shown_with_their_neighbours(tmp_path, renamed, hint):
    torch.save({renamed(name): value for name, value in good_state().items()}, tmp_path / "w.pt")
    assert refusal(tmp_path / "w.pt").endswith(hint)
