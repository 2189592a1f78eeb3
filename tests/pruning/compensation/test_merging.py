import copy

import pytest
import torch
from torch import nn

from prunegym.pruning.calibration import unfolding
from prunegym.pruning.compensation.merging import bias_shares, merging_shares, released_shares
from prunegym.pruning.compensation.unit_weights import OutputAffine
from prunegym.pruning.graph import find_groups
from tests.pruning.compensation.cases import dense_inputs, masked, outputs_of_reader, run
from tests.pruning.compensation.related_units import compensated, cut_output, related, without
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import TRANSPOSED, example

DOUBLE = torch.float64
# between writers and readers only what passes a positive factor on
HOMOGENEOUS = ["plain", "residual", "projected", "padded", "concat", "depthwise", "grouped", "shuffled"]
HOMOGENEOUS += ["flatten", "transposed", "conv3d", "mlp", "bias-free", "tokens"]


@pytest.fixture(autouse=True)
def every_position(monkeypatch):
    """Means over all positions, so that they are exact."""
    monkeypatch.setattr(unfolding, "POSITIONS_PER_IMAGE", 1000)


def affine(gamma, beta, mean, variance):
    values = [torch.tensor(value, dtype=DOUBLE) for value in (gamma, beta, mean, variance)]
    return OutputAffine(*values, sigma=values[3].sqrt())


class Collinear(nn.Sequential):
    """The filter of unit 1 is twice that of unit 0; unit 2 points elsewhere."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0.0), nn.ReLU(), nn.Conv2d(3, 2, 1)
        )
        with torch.no_grad():
            self[0].weight[:, :, 0, 0] = torch.tensor([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]])
            self[1].weight.copy_(torch.tensor([1.5, 0.5, 1.0]))
            self[1].running_var.copy_(torch.tensor([9.0, 16.0, 1.0]))
            self[1].running_mean.copy_(torch.tensor([2.0, 1.0, 0.5]))
            # c = gamma_1 / sigma_1 (s mu_0 - s sigma_0 beta_0 / gamma_0 - mu_1) + beta_1
            #   = 0.125 (4 - 4 beta_0 - 1) + beta_1 = 0 for beta_0 = 1
            self[1].bias.copy_(torch.tensor([1.0, 0.125, 0.3]))
        self.eval()

    def merged(self):
        """After merging unit 1 away, at full size."""
        images = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
        whole = nn.Sequential(self, nn.Flatten(), nn.Linear(50, 2)).eval()
        graph = find_groups(whole, (2, 5, 5))
        return compensated(whole, graph, images, {"0.0": torch.tensor([0, 2])}, "merging")[0]


def test_the_slope_is_the_one_that_collinear_filters_ask_for():
    net = Collinear()
    # a = s (gamma_1 / gamma_0) (sigma_0 / sigma_1) = 2 * (0.5 / 1.5) * (3 / 4) = 0.5
    columns = net[3].weight[:, :, 0, 0].detach()
    merged = net.merged()[3].weight[:, :, 0, 0].detach()
    torch.testing.assert_close(merged[:, 0], columns[:, 0] + 0.5 * columns[:, 1])
    torch.testing.assert_close(merged[:, 2], columns[:, 2])


def test_a_negative_factor_on_an_opposite_filter_is_a_positive_slope():
    net = Collinear()
    with torch.no_grad():
        net[0].weight[1] *= -1
        net[1].weight[1] *= -1
        net[1].running_mean[1] *= -1
    columns = net[3].weight[:, :, 0, 0].detach()
    merged = net.merged()[3].weight[:, :, 0, 0].detach()
    torch.testing.assert_close(merged[:, 0], columns[:, 0] + 0.5 * columns[:, 1])


def test_a_unit_with_factor_zero_becomes_a_bias():
    net = Collinear()
    with torch.no_grad():
        net[1].weight[1], net[1].bias[1] = 0, 0.7
    x, inner = torch.randn(3, 2, 5, 5), nn.Sequential(net[0], net[1], net[2])
    columns = net[3].weight[:, :, 0, 0].detach()
    merged = net.merged()[3]
    torch.testing.assert_close(merged.weight[:, 0, 0, 0], columns[:, 0])
    torch.testing.assert_close(merged.bias, net[3].bias + 0.7 * columns[:, 1])
    torch.testing.assert_close(merged(inner(x) * torch.tensor([1, 0, 1.0]).view(3, 1, 1)), net(x))


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_a_multiple_of_a_kept_unit_is_merged_without_loss(name):
    for group in example(name)[1].prunable:
        source, unit = 0, group.units - 1
        model, graph, images = related(name, group, unit, source, factor=0.6)
        expected = model(images).detach()
        found = cut_output(model, graph, images, without(group, unit), "merging")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_merging_keeps_the_mean_of_every_readers_output(name):
    model, changed, graph, _, cuts, images = run(name, "merging")
    readers = {one.owner: one.kept for one in cuts if one.axis == "in"}
    plain = {o: kept for o, kept in readers.items() if not isinstance(model.get_submodule(o), TRANSPOSED)}
    for owner, found in dense_inputs(model, images, plain).items():
        x = torch.cat(found)
        few = masked(model.get_submodule(owner), x, plain[owner])
        before, after = (outputs_of_reader(m, graph, owner, v) for m, v in ((model, x), (changed, few)))
        torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-4, atol=1e-4)


class TestTheChoiceOfAHost:
    kept, gone = torch.tensor([0, 1]), torch.tensor([2])

    def shares(self, rows, offsets):
        return merging_shares(
            torch.tensor(rows, dtype=DOUBLE), torch.tensor(offsets, dtype=DOUBLE), self.kept, self.gone
        ).tolist()

    def test_weighs_the_cosine_against_the_offset(self):
        # the first host fits in direction, the second in its offset: 0.15 * 1 against 0.85 (1 - cosine)
        offsets = [[5.0], [0.0], [0.0]]
        assert self.shares([[1.0, 0.0], [0.8, 0.6], [2.0, 0.0]], offsets) == [[2.0, 0.0]]  # 0.15 < 0.17
        assert self.shares([[1.0, 0.0], [0.9, 0.19**0.5], [2.0, 0.0]], offsets) == [
            [0.0, 2.0]
        ]  # 0.15 > 0.085

    def test_measures_the_offset_after_the_slope(self):
        # c = o_i - a o_j: 1 - 0.5 * 2 with the first, 1 - 1 * 1.5 with the second
        assert self.shares([[2.0], [1.0], [1.0]], [[2.0], [1.5], [1.0]]) == [[0.5, 0.0]]
        # 4 - 2 * 2 and 4 + 1 * 4
        assert self.shares([[1.0], [2.0], [2.0]], [[2.0], [-4.0], [4.0]]) == [[2.0, 0.0]]

    def test_adds_up_the_offsets_of_all_channels(self):
        offsets = [[0.0, 3.0], [2.0, 2.0], [0.0, 0.0]]  # lengths 3 and sqrt(8)
        assert self.shares([[1.0], [1.0], [1.0]], offsets) == [[0.0, 1.0]]

    def test_leaves_a_unit_like_no_other_alone(self):
        rows = [[1.0, 0.0], [-1.0, 0.0]]
        assert self.shares([*rows, [0.09, 0.9959]], [[0.0]] * 3) == [[0.0, 0.0]]
        assert self.shares([*rows, [0.11, 0.9939]], [[0.0]] * 3)[0][0] > 0.9

    def test_passes_over_a_host_without_weights(self):
        assert self.shares([[0.0], [3.0], [6.0]], [[0.0]] * 3) == [[0.0, 2.0]]


class TestMergingReleased:
    kept, gone = torch.tensor([0, 1]), torch.tensor([2])

    def shares(self, rows, *statistics):
        rows = torch.tensor(rows, dtype=DOUBLE)
        return released_shares(rows, affine(*statistics), self.kept, self.gone).tolist()

    def test_the_factors_by_hand(self):
        # s = 1 and 1/2; scale = s (gamma_j / gamma_i) (var_i / var_j) = 1 * 1/2 * 4, and 1/2 * 1/2 * 4
        # crossing = s (mu_i - var_i beta_i / gamma_i) = s (3 - 4 * 1 / 2) = s
        # mismatch = |gamma_j / var_j (crossing - mu_j) + beta_j| / scale = |1| / 2, and |1/2 - 1/2| / 1
        rows = [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]
        found = self.shares(rows, [1.0, 1.0, 2.0], [0.0, -0.5, 1.0], [0.0, 0.0, 3.0], [1.0, 1.0, 4.0])
        assert found == [[0.0, 1.0]]
        # with beta_j = 1/4 for the second it is 1 / 2 and 3/4 / 1
        found = self.shares(rows, [1.0, 1.0, 2.0], [0.0, 0.25, 1.0], [0.0, 0.0, 3.0], [1.0, 1.0, 4.0])
        assert found == [[2.0, 0.0]]
        # with beta_j = 0 and mu_j = 1 it is |1 - 1| / 2 for the first, and |1/2 - 1| / 1 for the second
        found = self.shares(rows, [1.0, 1.0, 2.0], [0.0, 0.0, 1.0], [1.0, 1.0, 3.0], [1.0, 1.0, 4.0])
        assert found == [[2.0, 0.0]]

    def test_without_batch_norm_the_bias_is_one_more_weight(self):
        rows = torch.tensor([[5.0], [3.0], [6.0]], dtype=DOUBLE)
        bias = torch.tensor([0.0, 4.0, 8.0], dtype=DOUBLE)
        assert bias_shares(rows, bias, self.kept, self.gone).tolist() == [[0.0, 2.0]]

    def test_a_network_without_batch_norm_is_merged_by_weight_and_bias(self):
        model, graph, images = example("mlp")
        model = copy.deepcopy(model)
        with torch.no_grad():
            model[0].weight[3], model[0].bias[3] = 0.5 * model[0].weight[1], 0.5 * model[0].bias[1]
        expected = model(images).detach()
        kept = without(graph.group("0"), 3)
        found = cut_output(model, graph, images, kept, "merging-released")
        torch.testing.assert_close(found, expected)

    def test_is_applied_to_the_readers_of_single_writers_alone(self):
        for name, touched in (("stem.0", False), ("a.0", True)):
            group = example("residual")[1].group(name)
            model, graph, images = related("residual", group, unit=2, source=0, factor=0.5)
            changed = compensated(model, graph, images, without(group, 2), "merging-released").state_dict()
            same = all(torch.equal(value, changed[key]) for key, value in model.state_dict().items())
            assert same != touched
