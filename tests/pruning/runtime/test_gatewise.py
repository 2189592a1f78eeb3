import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.graph import find_groups
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import detach_gates_, gates_of
from prunegym.pruning.runtime.gatewise import GatewiseExecution
from tests.pruning.example_networks import EXAMPLES, Head, randomised, unit
from tests.pruning.oracles import snapshot
from tests.pruning.plans import apply_to
from tests.pruning.plans import ratios as decision
from tests.pruning.runtime.test_gates import GATED, compressed
from tests.pruning.runtime.test_per_input import attached

STATIC, RUNTIME = 0.3, 0.4


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def deciding(model, images):
    """A PerInputPolicy in a network, with a random policy that tells images apart, if any of some does."""
    ratios = attached(model)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        for layer in (ratios.policy[0], ratios.policy[-1]):
            layer.weight.copy_(2 * torch.randn(layer.weight.shape, generator=generator))
        ratios.policy[0].bias.copy_(-ratios.policy[0].weight.sum(1) / 2)  # a typical feature is 0.5
        model(images)
        if len(torch.stack(ratios.decided, dim=1).unique(dim=0)) > 1:
            break
    return ratios


def run_by_itself(model, ratios, images):
    """(output, what the policy was shown at each gate, counts at each gate) of the plain forward."""
    seen = []
    handle = ratios.policy.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = model(images)
    handle.remove()
    return output, seen, torch.stack(ratios.decided, dim=1)


def step_through(network, ratios, images):
    """The same, from gate to gate, with the actions that the policy says."""
    observations = [network.begin(images)]
    for _ in ratios.units:
        observations.append(network.step(ratios.policy(observations[-1])[:, 0]))
    return observations[-1], observations[:-1], torch.stack(ratios.decided, dim=1)


def assert_same(found, expected):
    output, observations, counts = found
    assert torch.equal(counts, expected[2])
    assert len(observations) == len(expected[1]) == counts.size(1)
    torch.testing.assert_close(observations, expected[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(output, expected[0])


def hooks(model):
    return [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in model.modules()]


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("static", [0.0, STATIC])
def test_the_policys_own_actions_give_what_the_network_gives(name, static):
    model, images = compressed(name, static, RUNTIME, "least-squares").model, EXAMPLES[name].images(7)
    ratios = deciding(model, images)
    before, attached_hooks = snapshot(model), hooks(model)
    expected = run_by_itself(model, ratios, images)
    network = GatewiseExecution(model, EXAMPLES[name].input_shape)
    assert_same(step_through(network, ratios, images), expected)
    for part in (slice(0, 5), slice(6, 7)):  # batches of any size follow each other
        assert_same(step_through(network, ratios, images[part]), run_by_itself(model, ratios, images[part]))
    assert hooks(model) == attached_hooks
    assert_same(run_by_itself(model, ratios, images), expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_what_is_stepped_through_differs_among_images_and_has_every_form():
    """That the networks above are no easy ones."""
    forms, telling = set(), 0
    for name in GATED:
        found = compressed(name, STATIC, RUNTIME, "least-squares")
        ratios = deciding(found.model, EXAMPLES[name].images(7))
        telling += len(torch.stack(ratios.decided, dim=1).unique(dim=0)) > 1
        forms.add(found.records["channels"]["form"])
    assert forms == {"module", "graph"}
    assert telling > 0.9 * len(GATED)


@pytest.mark.parametrize("name", ["plain", "residual", "padded", "concat", "grouped", "tokens", "conv1d"])
def test_any_actions_run_the_units_that_they_say(name):
    model, images = compressed(name, 0.0, RUNTIME, "least-squares").model, EXAMPLES[name].images(6)
    ratios, gates = deciding(model, images), gates_of(model)
    network = GatewiseExecution(model, EXAMPLES[name].input_shape)
    actions = 2 * torch.rand(len(gates.sites), 6, generator=torch.Generator().manual_seed(3)) - 1
    network.begin(images)
    for action in actions:
        output = network.step(action)
    counts = [ratios.decode(number, action) for number, action in enumerate(actions)]
    assert torch.equal(torch.stack(ratios.decided), torch.stack(counts))
    for site, count in zip(gates.sites, counts, strict=True):
        gates.gate_for(site.group).count_of = lambda pooled, scores, count=count: count
    torch.testing.assert_close(output, model(images))


class Parallel(nn.Module):
    """Two branches in flight at once, which are not named in the order in which they run."""

    def __init__(self):
        super().__init__()
        self.join_b, self.join_a = unit(7, 6), unit(8, 6)
        self.late, self.early, self.head = unit(3, 7), unit(3, 8), Head(6)

    def forward(self, x):
        early, late = self.early(x), self.late(x)
        return self.head(F.relu(self.join_a(early) + self.join_b(late)))


def test_branches_that_are_in_flight_at_once():
    model, images = randomised(Parallel()), EXAMPLES["plain"].images(9)
    graph = find_groups(model, (3, 6, 6))
    plan = CompressionPlan({name: decision(0.2, RUNTIME) for name in ("late.0", "early.0")})
    model = apply_to(model, graph, plan, calibrate(graph, real_images(model, [images]))).model
    ratios = deciding(model, images)
    assert {site.group for site in gates_of(model).sites} == {"late.0", "early.0"}
    expected = run_by_itself(model, ratios, images)
    assert_same(step_through(GatewiseExecution(model, (3, 6, 6)), ratios, images), expected)


def test_an_episode_that_is_broken_off_leaves_nothing_behind():
    model, images = compressed("padded", 0.0, RUNTIME).model, EXAMPLES["padded"].images(5)
    ratios = deciding(model, images)
    expected = run_by_itself(model, ratios, images)
    network = GatewiseExecution(model, (3, 8, 8))
    network.begin(images[:2])
    network.step(torch.ones(2))
    assert_same(run_by_itself(model, ratios, images), expected)
    network.begin(images[:2])
    network.step(torch.ones(2))
    assert_same(step_through(network, ratios, images), expected)


def test_the_gates_can_be_taken_away_afterwards():
    model = compressed("plain", 0.0, RUNTIME).model
    attached(model)
    for _ in range(2):
        GatewiseExecution(model, (3, 6, 6))
    detach_gates_(model)
    assert not any(hooks(model))
