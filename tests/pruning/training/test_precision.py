import pytest
import torch
from torch import nn

from prunegym.pruning.data import Images
from prunegym.pruning.errors import PruningError, UnknownNameError
from prunegym.pruning.training.loop import TrainingConfig, TrainingLoop
from prunegym.pruning.training.precision import PRECISIONS, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", PRECISIONS[1:])
def test_a_precision_that_is_named_is_taken(name):
    assert str(resolve_precision(name, CPU)) == f"torch.{name}"


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_left_to_itself_a_gpu_computes_in_half_the_bits_if_it_can(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    assert resolve_precision("auto", torch.device("cuda")) == expected
    assert resolve_precision("auto", CPU) == torch.float32


def test_a_wrong_name_brings_the_right_one():
    with pytest.raises(UnknownNameError, match="no precision named 'bf16'"):
        resolve_precision("bf16", CPU)


def descend(precision, *, factor=1.0, epochs=1):
    """Follow a linear layer's output times a factor; return (types, epochs, layer, its start)."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 1)
    start, seen = layer.weight.detach().clone(), []

    def loss_of(batch, labels):
        output = layer(batch.flatten(1))
        seen.append(output.dtype)
        return output.float().mean() * factor

    images = Images(torch.ones(8, 1, 2, 2), torch.zeros(8).long())
    config = TrainingConfig(epochs, 0.1, 8, weight_decay=0, precision=precision)
    descent = TrainingLoop(list(layer.parameters()), images, config, loss_of)
    return seen, list(descent.epochs()), layer, start


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_forward_passes_take_the_type_and_weights_stay_float32(precision):
    seen, _, layer, start = descend(precision, factor=0.5)
    assert seen == [getattr(torch, precision)]
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.detach(), start - 0.1 * 1.9 / 2)  # Nesterov's first step


def test_a_gradient_too_large_for_float16_as_it_is_scaled_lowers_the_scale_and_the_rate_waits():
    # the first scale, 65,536, is just beyond float16, the next within
    _, epochs, layer, start = descend("float16", epochs=3)
    assert [epoch.learning_rate for epoch in epochs][:2] == [0.1, 0.1]
    assert epochs[2].learning_rate < 0.1
    assert torch.isfinite(layer.weight).all()
    assert not torch.equal(layer.weight, start)


def test_a_gradient_that_stays_infinite_ends_the_descent():
    weight = nn.Parameter(torch.zeros(1))
    images = Images(torch.ones(2, 1, 1, 1), torch.zeros(2).long())
    descent = TrainingLoop(
        [weight],
        images,
        TrainingConfig(40, 0.1, 8, precision="float16"),
        lambda batch, labels: weight.sqrt().sum(),
    )
    with pytest.raises(PruningError, match=r"in epoch 1\d: the norm of its gradient is inf"):
        list(descent.epochs())
