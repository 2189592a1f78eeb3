import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.compensation.unit_weights import (
    folded_rows,
    output_affine,
    redistribute_,
    single_writer_groups,
)
from tests.pruning.compensation.cases import dense_inputs, outputs_of_reader
from tests.pruning.compensation.related_units import without
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example

DOUBLE = torch.float64


def channel_dim(layer):
    return -1 if isinstance(layer, nn.Linear) else 1


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_a_reader_handed_a_share_sees_it_in_the_place_of_the_lost_unit(name):
    model, graph, images = example(name)
    generator = torch.Generator().manual_seed(0)
    for group in graph.prunable:
        order = torch.randperm(group.units, generator=generator)
        kept, gone = order[: (group.units + 1) // 2], order[(group.units + 1) // 2 :]
        shares = torch.randn(len(gone), len(kept), generator=generator, dtype=DOUBLE)
        changed = copy.deepcopy(model)
        redistribute_(changed, group, shares, kept, gone)
        for reader in group.readers:
            x = dense_inputs(model, images, [reader.owner])[reader.owner][0]
            layer = model.get_submodule(reader.owner)
            moved = x.movedim(channel_dim(layer), 0).clone()
            silenced = moved.clone()
            for row, lost in zip(shares.float(), gone.tolist(), strict=True):
                for number, channel in enumerate(reader.channels[lost]):
                    hosts = [reader.channels[unit][number] for unit in kept.tolist()]
                    moved[channel] = torch.tensordot(row, moved[hosts], dims=1)
                    silenced[channel] = 0
            seen, given = (values.movedim(0, channel_dim(layer)) for values in (moved, silenced))
            expected = outputs_of_reader(model, graph, reader.owner, seen)
            found = outputs_of_reader(changed, graph, reader.owner, given)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "bias-free"])
def test_folded_rows_and_offsets_give_the_units_themselves(name):
    model, graph, images = example(name)
    (group,) = (group for group in graph.prunable if group.name == "0.0")
    rows, offsets = folded_rows(model, graph, group)
    columns = F.unfold(images, 3, padding=1).double()
    found = (rows @ columns + offsets).view(len(images), -1, 6, 6).float()
    head = model[0][:-1]  # without the ReLU
    torch.testing.assert_close(found, head(images).detach(), rtol=1e-4, atol=1e-5)


def test_folded_rows_hold_the_bias_of_a_layer_without_batch_norm():
    model, graph, images = example("mlp")
    rows, offsets = folded_rows(model, graph, graph.group("0"))
    torch.testing.assert_close((images.double() @ rows.T + offsets.T).float(), model[0](images).detach())


def test_a_bias_before_a_batch_norm_counts_once():
    model, graph, images = example("conv1d")  # a convolution with a bias, then its BatchNorm
    affine = output_affine(model, graph.layers["a"])
    sums = model.a(images) - model.a.bias[:, None]
    expected = model.norm(model.a(images)).detach()
    for found in (
        affine.scale[:, None] * sums + affine.offset[:, None],
        affine.gamma[:, None] * (sums - affine.mean[:, None]) / affine.sigma[:, None] + affine.beta[:, None],
    ):
        torch.testing.assert_close(found.float(), expected)


def test_a_residual_streams_rows_are_those_of_all_its_writers():
    model, graph, _ = example("residual")
    group = graph.group("stem.0")
    rows, offsets = folded_rows(model, graph, group)
    assert group.layers == ("stem.0", "b.0")
    assert rows.shape == (6, 3 * 9 + 8 * 9)
    assert offsets.shape == (6, 2)


class TestLoneWriters:
    def found(self, name, kept, change=lambda model: None):
        model, graph, _ = example(name)
        model = copy.deepcopy(model)
        with torch.no_grad():
            change(model)

        class Planned:
            dense = model

        Planned.graph, Planned.kept = graph, kept
        return list(single_writer_groups(Planned))

    def test_are_no_residual_streams_and_no_units_of_several_channels(self):
        for name in ("residual", "grouped"):
            graph = example(name)[1]
            kept = {group.name: torch.tensor([0]) for group in graph.prunable}
            names = {found.group.name for found in self.found(name, kept)}
            expected = {
                group.name
                for group in graph.prunable
                if len(group.writers) == 1 and len(group.writers[0].channels[0]) == 1
            }
            assert names == expected != set(kept)

    def test_leave_out_constant_channels(self):
        def change(model):
            batch_norm = model[0][1]
            batch_norm.weight[1] = 0
            batch_norm.running_var[2] = 0
            model[0][0].weight[4] = 0

        kept = {"0.0": torch.tensor([0, 1, 3])}
        (found,) = self.found("plain", kept, change)
        assert found.kept.tolist() == [0, 3]
        assert found.removed.tolist() == [5]

    def test_have_rows_and_statistics_in_the_order_of_the_units(self):
        model, graph, _ = example("chunk-apart")
        group = graph.group("conv.0#1")  # the second half of the channels
        (found,) = self.found("chunk-apart", without(group, 1))
        torch.testing.assert_close(found.rows, model.conv[0].weight[5:].flatten(1).detach().double())
        assert found.affine.beta.tolist() == model.conv[1].bias[5:].double().tolist()
        assert found.kept.tolist() == [0, 2, 3, 4]
        assert found.removed.tolist() == [1]
        assert found.has_batch_norm
