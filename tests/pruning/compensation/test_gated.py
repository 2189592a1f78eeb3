import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation.gated import GatedRows, _MaskedReader, refit_reader_
from prunegym.pruning.compensation.records import PlannedCut
from prunegym.pruning.graph import find_groups
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import GatedInput, GateSite, RuntimeGate, as_key, gates_of
from tests.pruning.example_networks import EXAMPLES, Head, randomised, unit
from tests.pruning.oracles import example
from tests.pruning.plans import apply_to
from tests.pruning.plans import ratios as decision
from tests.pruning.runtime.test_gates import GATED

DOUBLE = torch.float64
REFITTED = ("least-squares", "least-squares-progressive")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("static", [0.0, 0.4])
def test_a_gate_behind_a_gate_is_fitted_to_what_it_will_see(monkeypatch, static):
    model, graph, images = example("plain")
    calibration = calibrate(graph, real_images(model, [images]))
    # the inputs of the second gate are cut where static, and skipped by the first one
    plan = CompressionPlan({"0.0": decision(static, 0.5), "1.0": decision(0.0, 0.5)})
    seen, choose = {}, RuntimeGate.choose
    with monkeypatch.context() as patch:
        patch.setattr(RuntimeGate, "choose", lambda gate, x: (seen.update({gate: x}), choose(gate, x)))
        found = apply_to(model, graph, plan, calibration, method=Method(compensation="least-squares"))
        (fitted,) = [x for gate, x in seen.items() if len(gate.bias) == 8]
        found.model(images)
    (at_work,) = [x for gate, x in seen.items() if gate is gates_of(found.model).gate_for("1.0")]
    stays = fitted.abs().sum(0) > 0
    torch.testing.assert_close(fitted[:, stays], at_work, rtol=1e-4, atol=1e-5)


class Problem:
    """A reader with conv groups behind one gate, random rows, and a random target."""

    def __init__(self, groups=2, channels=3, units=3, kernel=4, outputs=5, images=6, positions=7):
        torch.manual_seed(0)
        self.reader = nn.Conv2d(groups * channels, groups * outputs, (1, kernel), groups=groups)
        self.places = tuple(channel % channels % units for channel in range(groups * channels))
        site = GateSite("g", "w", 4, units, 2, {}, {"1": self.places})
        self.gate = RuntimeGate(site)
        self.gate.fill[as_key("1")].normal_()
        self.gate.weight.normal_()
        self.gate.choose(torch.randn(images, 4))
        self.rows = torch.randn(groups, images * positions, channels * kernel)
        self.target = torch.randn(groups, images * positions, outputs)
        self.inputs = GatedRows(
            self.rows, torch.randn(images, groups * channels), [GatedInput(self.gate, "1", self.places)]
        )
        self.shape = (groups, channels, kernel, images, positions)

    def solver(self):
        stays = torch.ones(self.rows.size(2), dtype=torch.bool)
        return _MaskedReader(self.reader, self.inputs, self.target, stays)

    def residual(self, solution, mask):
        """target - what the reader gives, image by image, channel by channel."""
        groups, channels, kernel, images, positions = self.shape
        found = self.target.clone()
        fill = self.inputs.gated[0].fill_by_channel().tolist()
        for group in range(groups):
            for image in range(images):
                for row in range(image * positions, (image + 1) * positions):
                    for channel in range(channels):
                        number = group * channels + channel
                        if mask[image, self.places[number]] == 0:
                            continue
                        place = slice(channel * kernel, (channel + 1) * kernel)
                        seen = self.rows[group, row, place] - fill[number]
                        found[group, row] -= solution.weight[group][:, place] @ seen
        return found - solution.shift.float().view(groups, 1, -1)


@pytest.mark.parametrize("sizes", [{}, {"groups": 1, "channels": 6, "units": 3}, {"groups": 1}])
def test_a_units_worth_is_what_an_images_error_gains_without_it(sizes):
    problem = Problem(**sizes)
    solver = problem.solver()
    solution = solver.solve()
    worth = solver.worth(solution)
    images, positions = problem.shape[3:]
    for number in range(worth.size(1)):
        errors = []
        for runs in (0.0, 1.0):
            mask = problem.gate.mask.clone()
            mask[:, number] = runs
            squares = problem.residual(solution, mask).square().sum((0, 2))
            errors.append(squares.view(images, positions).sum(1))
        torch.testing.assert_close(worth[:, number].float(), errors[0] - errors[1], rtol=1e-3, atol=1e-3)


def test_the_error_is_that_of_the_reader_as_it_runs():
    problem = Problem()
    solution = problem.solver().solve()
    residual = problem.residual(solution, problem.gate.mask)
    assert solution.error == pytest.approx(float(residual.square().mean()), rel=1e-4)


def test_the_weights_are_those_of_ridge_regression_on_masked_inputs():
    problem = Problem(groups=1, channels=3)
    solution = problem.solver().solve()
    positions = problem.shape[4]
    mask = problem.gate.mask[:, list(problem.places)].repeat_interleave(4, 1).repeat_interleave(positions, 0)
    fill = problem.inputs.gated[0].fill_by_channel().repeat_interleave(4)
    seen = ((problem.rows[0] - fill) * mask).to(DOUBLE)
    weight = problem.reader.weight.flatten(1).to(DOUBLE)
    lacking = problem.target[0].to(DOUBLE) - seen @ weight.T
    centred = seen - seen.mean(0)
    penalty = (1e-2 * centred.square().mean() * len(seen)).sqrt() * torch.eye(seen.size(1), dtype=DOUBLE)
    stacked = torch.cat([centred, penalty])
    wanted = torch.cat([lacking - lacking.mean(0), torch.zeros(seen.size(1), lacking.size(1), dtype=DOUBLE)])
    expected = weight + torch.linalg.lstsq(stacked, wanted).solution.T
    torch.testing.assert_close(solution.weight[0].to(DOUBLE), expected, rtol=1e-4, atol=1e-5)


def test_fitting_the_gate_lowers_the_error_and_never_raises_it():
    errors = {}
    for rounds in (0, 3):
        problem = Problem(groups=1, channels=6, units=6, outputs=2, images=40)
        model = nn.Sequential(nn.Conv2d(3, 6, 1), problem.reader)
        planned = PlannedCut(model, find_groups(model, (3, 4, 8)), {}, (), calibration=None)  # not looked at
        refit_reader_(model, planned, "1", problem.inputs, problem.target, rounds=rounds)
        errors[rounds] = problem.solver().solve().error
    assert errors[3] < 0.99 * errors[0]


@pytest.mark.parametrize("compensation", REFITTED)
@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_on_its_own_images_a_refit_is_no_worse_than_fills_alone(name, compensation):
    model, graph, _ = example(name)
    images = EXAMPLES[name].images(24)
    calibration = calibrate(graph, real_images(model, [images]))
    gated = next(group for group in graph.prunable if group.ungated is None)
    plan = CompressionPlan({gated.name: decision(0.0, 0.4)})
    errors = {}
    for method in ("none", compensation):
        found = apply_to(model, graph, plan, calibration, method=Method(compensation=method))
        errors[method] = reader_error(model, found.model, gated, images)
    assert errors[compensation] <= 1.02 * errors["none"]  # it sees a sample of positions


def reader_error(dense, gated, group, images):
    """Mean squared change of what the group's readers give, biases moved into BatchNorms left out."""
    total = 0.0
    for reader in group.readers:
        outputs = []
        for network in (dense, gated):
            module = network.get_submodule(reader.owner)
            handle = module.register_forward_hook(lambda _, args, output, to=outputs: to.append(output))
            network(images)
            handle.remove()
        change = outputs[0] - outputs[1]
        dims = [dim for dim in range(change.dim()) if dim != (1 if change.dim() != 3 else change.dim() - 1)]
        total += float((change - change.mean(dims, keepdim=True)).square().mean())
    return total


@pytest.mark.parametrize("compensation", REFITTED)
def test_gates_are_fitted_to_the_worth_of_their_units(compensation):
    build = nn.Sequential(unit(3, 12), unit(12, 8), Head(8))
    model = randomised(build).eval()
    graph = find_groups(model, (3, 8, 8))
    images = torch.randn(128, 3, 8, 8) * torch.rand(128, 3, 1, 1) * 3
    calibration = calibrate(graph, real_images(model, [images]))
    plan = CompressionPlan({"0.0": decision(0.0, 0.5)})
    errors = {}
    for method in ("none", compensation):
        found = apply_to(model, graph, plan, calibration, method=Method(compensation=method))
        errors[method] = reader_error(model, found.model, graph.group("0.0"), images)
    assert errors[compensation] < 0.9 * errors["none"]
    assert len({tuple(mask) for mask in gates_of(found.model).gate_for("0.0").mask.tolist()}) > 1


def test_a_reader_that_has_nowhere_to_put_a_mean_keeps_its_weights():
    model, graph, images = example("bias-free")
    plan = CompressionPlan({"0.0": decision(0.0, 0.5)})
    calibration = calibrate(graph, real_images(model, [images]))
    found = apply_to(model, graph, plan, calibration, method=Method(compensation="least-squares"))
    reader = graph.group("0.0").readers[0].owner
    assert found.model.get_submodule(reader).bias is None
    assert torch.equal(found.model.get_submodule(reader).weight, model.get_submodule(reader).weight)
