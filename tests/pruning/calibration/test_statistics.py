import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.calibration import collectors, moments
from prunegym.pruning.calibration.moments import FullCovariance, SampledCovariance
from prunegym.pruning.calibration.statistics import STATISTICS, USUAL, calibrate, real_images
from prunegym.pruning.calibration.unfolding import POSITIONS_PER_IMAGE, unfolded
from prunegym.pruning.errors import DataError, UnknownNameError
from prunegym.pruning.graph import find_groups
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from tests.pruning.example_networks import EXAMPLES, Head, randomised, unit
from tests.pruning.oracles import assert_untouched, example, snapshot

READERS = {
    "1x1": nn.Conv2d(6, 4, 1),
    "3x3": nn.Conv2d(6, 4, 3, padding=1),
    "strided": nn.Conv2d(6, 4, 3, padding=1, stride=2),
    "dilated": nn.Conv2d(6, 4, 3, padding=2, dilation=2),
    "all at once": nn.Conv2d(6, 4, (3, 2), padding=(2, 1), dilation=(2, 1), stride=(2, 3), groups=2),
    "same": nn.Conv2d(6, 4, (3, 5), padding="same"),
    "grouped": nn.Conv2d(6, 6, 3, groups=3),
    "reflected": nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
}
SHAPES = {
    "linear": (nn.Linear(6, 4), (3, 6)),
    "linear on rows": (nn.Linear(6, 4), (3, 5, 6)),
    "1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), (3, 6, 11)),
    "3d": (nn.Conv3d(6, 4, 2, dilation=2, groups=2), (3, 6, 4, 5, 4)),
    **{name: (layer, (3, 6, 7, 8)) for name, layer in READERS.items()},
}


def generator():
    return torch.Generator().manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize("name", list(SHAPES))
def test_unfolded_inputs_times_the_weight_are_the_layers_output(name):
    layer, shape = SHAPES[name]
    x = torch.randn(shape, generator=generator())
    u = unfolded(layer, x, generator())
    groups = getattr(layer, "groups", 1)
    rows = layer.weight.flatten(1).unflatten(0, (groups, -1))
    found = torch.cat(list(u @ rows.mT), dim=-1) + layer.bias
    out = layer(x)
    expected = out if isinstance(layer, nn.Linear) else out.movedim(1, -1)
    torch.testing.assert_close(found, expected.reshape(len(found), -1), rtol=1e-4, atol=1e-5)


def test_unfolded_by_pytorchs_own_unfold():
    layer = READERS["strided"]
    x = torch.randn(3, 6, 7, 8, generator=generator())
    u = unfolded(layer, x, generator())
    expected = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 54)
    assert torch.equal(u[0], expected)


def test_of_many_positions_a_seeded_few_are_seen_in_every_image():
    layer = nn.Conv2d(2, 3, 3)
    x = torch.randn(2, 2, 12, 12, generator=generator())
    u = unfolded(layer, x, generator())[0]
    assert u.shape == (2 * POSITIONS_PER_IMAGE, 18)
    assert torch.equal(u, unfolded(layer, x, generator())[0])
    everywhere = F.unfold(x, 3).transpose(1, 2)
    places = [
        (everywhere[image] == u[image * POSITIONS_PER_IMAGE + row]).all(1).nonzero().item()
        for image in range(2)
        for row in range(POSITIONS_PER_IMAGE)
    ]
    assert places[:POSITIONS_PER_IMAGE] == places[POSITIONS_PER_IMAGE:]
    assert len(set(places)) == POSITIONS_PER_IMAGE


class Recorder:
    """Keeps what enters a layer."""

    def __init__(self, model, name):
        self.inputs = []
        self.handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args: self.inputs.append(args[0].detach())
        )

    def __enter__(self):
        return self.inputs

    def __exit__(self, *_):
        self.handle.remove()


@torch.no_grad()
def test_moments_are_mean_and_covariance_of_the_unfolded_input():
    model, graph, images = example("grouped")
    moments = calibrate(graph, real_images(model, [images])).moments
    assert set(moments) == {"grouped.0", "last.0", "head.2"}
    with Recorder(model, "grouped.0") as inputs:
        model(images)
    for number in range(4):
        u = F.unfold(inputs[0][:, 3 * number : 3 * number + 3], 3, padding=1).transpose(1, 2).reshape(-1, 27)
        u = u.double()
        torch.testing.assert_close(moments["grouped.0"].mean[number], u.mean(0), rtol=1e-5, atol=1e-6)
        found = moments["grouped.0"].covariances[number].matrix
        torch.testing.assert_close(found, u.T.cov(correction=0), rtol=1e-4, atol=1e-5)
        assert found.dtype == torch.float64


def test_moments_do_not_depend_on_how_the_images_are_batched():
    model, graph, _ = example("plain")
    images = EXAMPLES["plain"].images(5)
    whole, parts = (
        calibrate(graph, real_images(model, batches)) for batches in ([images], [images[:2], images[2:]])
    )
    for name in whole.moments:
        one, other = whole.moments[name], parts.moments[name]
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            one.covariances[0].matrix, other.covariances[0].matrix, rtol=1e-4, atol=1e-5
        )


def test_a_layer_called_twice_has_the_moments_of_both_calls():
    model, graph, images = example("called-twice")
    with Recorder(model, "shared") as inputs:
        model(images)
    u = torch.cat([F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 54) for x in inputs])
    found = calibrate(graph, real_images(model, [images])).moments["shared"].mean[0]
    torch.testing.assert_close(found, u.double().mean(0), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_gates_are_fitted_to_means_of_the_writers_and_strengths_of_the_readers_inputs():
    model, graph, images = example("plain")
    found = calibrate(graph, real_images(model, [images[:2], images[2:]]))
    assert set(found.pooled) == {"0.0", "1.0"}
    assert set(found.magnitudes) == {"1.0", "2.2"}
    with Recorder(model, "1.0") as inputs:
        model(images)
    torch.testing.assert_close(found.pooled["0.0"], images.mean((2, 3)))
    torch.testing.assert_close(found.pooled["1.0"], inputs[0].mean((2, 3)))
    torch.testing.assert_close(found.magnitudes["1.0"], inputs[0].pow(2).mean((2, 3)).pow(0.5))


def test_the_model_is_run_in_evaluation_mode_and_left_as_it_was():
    model, graph, images = example("plain")
    model = copy.deepcopy(model).train()
    before = snapshot(model)
    found = calibrate(graph, real_images(model, [images]))
    assert_untouched(model, before)
    assert model.training
    expected = calibrate(graph, real_images(example("plain")[0], [images]))
    assert torch.equal(found.moments["1.0"].mean, expected.moments["1.0"].mean)


def test_no_image_is_refused():
    model, graph, _ = example("plain")
    with pytest.raises(DataError, match="no calibration image"):
        calibrate(graph, real_images(model, []))


def test_activations_that_are_not_finite_are_refused_with_the_layer():
    model, graph, images = example("plain")
    images = images.clone()
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match=r"inputs of layer 1\.0 are not finite"):
        calibrate(graph, real_images(model, [images]))


class TestCovariances:
    """Full and sampled are two ways to the same numbers."""

    @pytest.fixture
    def rows(self):
        mixing = torch.randn(7, 7, generator=generator(), dtype=torch.float64)
        rows = torch.randn(40, 7, generator=generator(), dtype=torch.float64) @ mixing
        return rows - rows.mean(0)

    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_regression_is_ridge_regression_of_the_removed_on_the_kept(self, rows, kind):
        covariance = FullCovariance(rows.T @ rows / 40) if kind == "full" else SampledCovariance(rows)
        removed, kept = torch.tensor([1, 5]), torch.tensor([0, 2, 3, 4, 6])
        penalty = 0.3 * rows.square().mean()
        # ridge regression as least squares with extra rows: minimise |X_S B - X_R|^2 + 40 penalty |B|^2
        above = torch.cat([rows[:, kept], (40 * penalty).sqrt() * torch.eye(5, dtype=torch.float64)])
        target = torch.cat([rows[:, removed], torch.zeros(5, 2, dtype=torch.float64)])
        expected = torch.linalg.lstsq(above, target).solution.T
        found = covariance.regression(removed, kept, ridge=0.3)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_the_factor_gives_the_variance_of_a_weighted_sum_in_any_order(self, rows, kind):
        covariance = FullCovariance(rows.T @ rows / 40) if kind == "full" else SampledCovariance(rows)
        weight = torch.randn(3, 7, generator=generator(), dtype=torch.float64)
        order = torch.randperm(7, generator=generator())
        factor = covariance.factor(order, ridge=0.0)
        assert torch.equal(factor, factor.tril())
        energy = (weight[:, order] @ factor).square().sum(1)
        torch.testing.assert_close(energy, (rows @ weight.T).var(0, correction=0))

    @pytest.mark.parametrize("kind", ["full", "sampled"])
    def test_a_dead_layer_does_not_break_the_solution(self, kind):
        dead = torch.zeros(4, 3, dtype=torch.float64)
        covariance = FullCovariance(dead[:3]) if kind == "full" else SampledCovariance(dead)
        found = covariance.regression(torch.tensor([0]), torch.tensor([1, 2]), ridge=1e-3)
        assert torch.equal(found, torch.zeros(1, 2, dtype=torch.float64))


def test_a_wide_reader_keeps_an_even_sample_of_centred_rows(monkeypatch):
    monkeypatch.setattr(collectors, "MAX_FULL_INPUTS", 10)
    monkeypatch.setattr(moments, "N_SAMPLED_ROWS", 20)
    model = randomised(nn.Sequential(unit(3, 6), unit(6, 8), Head(8)))
    graph, images = find_groups(model, (3, 6, 6)), EXAMPLES["plain"].images()
    with Recorder(model, "1.0") as inputs:
        model(images)
    found = calibrate(graph, real_images(model, [images])).moments["1.0"]
    u = F.unfold(inputs[0], 3, padding=1).transpose(1, 2).reshape(-1, 54)[::6].double()  # 108 rows
    (covariance,) = found.covariances
    assert isinstance(covariance, SampledCovariance)
    torch.testing.assert_close(found.mean[0], u.mean(0))
    torch.testing.assert_close(covariance.rows, u - u.mean(0))


def test_a_wide_reader_keeps_few_rows_however_many_come(monkeypatch):
    monkeypatch.setattr(moments, "N_SAMPLED_ROWS", 20)
    rows = torch.arange(5000.0)[None, :, None].expand(1, -1, 3)
    some = moments.SampledRows()
    for part in rows.split(130, dim=1):
        some.add(part)
        assert some._kept <= 40
    kept = some.moments().covariances[0].rows[:, 0]
    assert 10 <= len(kept) <= 20
    assert len(set(kept.diff().tolist())) == 1  # evenly spread
    assert kept[-1] - kept[0] > 4400


@pytest.mark.parametrize("padding", [1, (1, 1), "same"])
def test_a_convolution_that_pads_by_itself_is_unfolded_as_its_kernel_sees_it(padding):
    class OneSided(nn.Conv2d):
        def forward(self, x):
            x = F.pad(x, (1, 0, 2, 0))
            return F.conv2d(x, self.weight, self.bias, padding=padding)

    layer, x = OneSided(3, 4, 3, padding=padding), torch.randn(2, 3, 6, 5)
    rows = unfolded(layer, x, torch.Generator(), positions=1000)
    assert rows.shape == (1, 2 * 8 * 6, 27)
    output = rows[0] @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(output.view(2, 8, 6, 4).permute(0, 3, 1, 2), layer(x))


class TestWhatIsAskedFor:
    def test_is_collected_and_nothing_else(self):
        model, graph, images = example("plain")
        found = calibrate(graph, real_images(model, [images]), statistics=["means"])
        assert list(found.statistics) == ["means"]
        with pytest.raises(LookupError, match="the statistic 'moments' was not collected; name it among"):
            found.moments  # noqa: B018
        with pytest.raises(UnknownNameError, match=r"no statistic named 'mean'\. Did you mean 'means'"):
            calibrate(graph, real_images(model, [images]), statistics=["mean"])

    def test_is_the_same_whatever_else_is(self):
        model, graph, images = example("residual")
        usual = calibrate(graph, real_images(model, [images]))
        more = calibrate(graph, real_images(model, [images]), statistics=list(STATISTICS))
        for name, of_layer in usual.rows.items():
            assert torch.equal(of_layer, more.rows[name])
        for name, one in usual.moments.items():
            assert torch.equal(one.mean, more.moments[name].mean)

    @pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "transposed", "tokens"])
    def test_moments_of_all_layers_are_those_of_readers_and_of_the_others(self, name):
        model, graph, images = example(name)
        found = calibrate(graph, real_images(model, [images]), statistics=["layer_moments"])
        layers = {one for one in graph.layers if not isinstance(model.get_submodule(one), nn.ConvTranspose2d)}
        assert found["layer_moments"].keys() == layers
        assert found.moments.keys() < found["layer_moments"].keys()
        assert all(found["layer_moments"][one] is moments for one, moments in found.moments.items())
        first = next(iter(layers - found.moments.keys()))
        x = unfolded(model.get_submodule(first), inputs_of(model, first, images), generator())
        torch.testing.assert_close(
            found["layer_moments"][first].mean, x.mean(1).double(), rtol=1e-4, atol=1e-5
        )

    def test_ranges_are_the_smallest_and_largest_values_of_each_channel(self):
        model, graph, images = example("plain")
        found = calibrate(graph, real_images(model, [images[:1], images[1:]]), statistics=["ranges"])[
            "ranges"
        ]
        for name in graph.layers:
            x = inputs_of(model, name, images)
            channels = x.movedim(1, 0).flatten(1)
            torch.testing.assert_close(found[name], torch.stack([channels.amin(1), channels.amax(1)]))

    def test_gradients_are_those_of_the_networks_own_answer(self):
        model, graph, images = example("plain")
        before = snapshot(model)
        found = calibrate(graph, real_images(model, [images[:1], images[1:]]), statistics=["gradients"])
        assert_untouched(model, before)
        assert all(parameter.grad is None for parameter in model.parameters())
        hidden = model[0](images).detach().requires_grad_(True)  # behind the first convolution's ReLU
        logits = model[2](model[1](hidden))
        loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, hidden)
        convolution, norm = model[0][0], model[0][1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        with torch.no_grad():
            through = gradient * (hidden > 0) * scale[:, None, None]
            expected = through.square().mean((2, 3)).sqrt()
        torch.testing.assert_close(found["gradients"]["0.0"], expected, rtol=1e-4, atol=1e-7)
        assert found["gradients"].keys() == graph.layers.keys()
        assert convolution.weight.requires_grad

    def test_is_asked_for_by_what_reads_it(self):
        model, images = EXAMPLES["blocks"].model(), EXAMPLES["blocks"].images()
        asked = lambda **method: set(  # noqa: E731
            PrunableNetwork(
                model, real_images(model, [images]), method=Method(**method)
            ).calibration.statistics
        )
        assert asked() == set(USUAL)
        assert asked(techniques=("channels",)) == {"moments"}
        assert asked(techniques=("channels", "depth")) == {"moments", "blocks"}


def inputs_of(model, name, images):
    """What a layer reads."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]
