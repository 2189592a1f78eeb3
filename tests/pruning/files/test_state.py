import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from prunegym.pruning.files.state import (
    optimizer_tensors,
    prefixed,
    read_state,
    restore_optimizer_,
    with_prefix,
    write_state,
)

TENSORS = {
    "weights": torch.arange(6.0).view(2, 3).T,  # no copy of its own
    "count": torch.tensor(3),
    "none": torch.zeros(0, 4),
    "half": torch.tensor([0.1, 1e30], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
}
RECORD = {"run": {"seed": 1, "ü": [1.5, None, "x"]}, "0.1 + 0.2": 0.1 + 0.2}


@pytest.fixture
def path(tmp_path):
    write_state(tmp_path / "state", RECORD, TENSORS)
    return tmp_path / "state"


def test_plain_data_and_tensors_come_back_as_they_were(path):
    record, tensors = read_state(path)
    assert record == RECORD
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@given(data=st.data())
def test_any_other_byte_is_noticed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("flipped") / "state"
    write_state(path, RECORD, TENSORS)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        record, tensors = read_state(path)
    except ValueError:
        return
    # of a header, blanks may change without a meaning
    assert record == RECORD
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, b"\x80\x04K\x01."])
def test_what_is_no_state_is_refused(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ValueError, match=r"\w"):
        read_state(tmp_path / "state")


def test_a_file_of_tensors_without_a_checksum_is_refused(tmp_path):
    record = torch.tensor(list(json.dumps(RECORD).encode()), dtype=torch.uint8)
    save_file({"record": record}, tmp_path / "state")
    with pytest.raises(ValueError, match="does not have the checksum"):
        read_state(tmp_path / "state")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "state")


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_optimizer_goes_on_as_if_it_had_not_been_interrupted(kind, tmp_path):
    def steps(layer, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            layer(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

    layer, again = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = kind(layer.parameters())
    steps(layer, optimizer, 3)
    again.load_state_dict(layer.state_dict())
    resumed = kind(again.parameters())
    write_state(tmp_path / "state", {}, optimizer_tensors(optimizer))
    restore_optimizer_(resumed, read_state(tmp_path / "state")[1])
    for one, its in ((layer, optimizer), (again, resumed)):
        steps(one, its, 3)
    assert torch.equal(layer.weight, again.weight)
    assert torch.equal(layer.bias, again.bias)


@pytest.mark.parametrize(
    "tensors",
    [
        {"0.exp_avg": torch.zeros(3)},
        {"0.step": torch.zeros(2)},
        {"7.exp_avg": torch.zeros(2, 3)},
        {"x.exp_avg": torch.zeros(2, 3)},
    ],
)
def test_what_is_not_of_the_optimizers_parameters_is_refused(tensors):
    optimizer = torch.optim.AdamW(nn.Linear(3, 2).parameters())
    with pytest.raises((IndexError, ValueError), match=r"\w"):
        restore_optimizer_(optimizer, tensors)


def test_prefixes_are_taken_off_again():
    named = prefixed("a", {"x": torch.zeros(1)}) | prefixed("ab", {"y": torch.zeros(1)})
    assert list(with_prefix("a", named)) == ["x"]
