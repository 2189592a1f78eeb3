import copy
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from prunegym.pruning.plan import kept_units
from prunegym.pruning.products import SumOfProducts
from prunegym.pruning.runtime.gates import GateSite, gates_of
from prunegym.pruning.runtime.per_input import (
    FEATURES,
    PER_INPUT,
    InputStatistics,
    InputSummary,
    PerInputPolicy,
    find_per_input_policy,
)
from prunegym.pruning.runtime.prices import InputPrices
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example, snapshot
from tests.pruning.runtime.test_gates import GATED, compressed

LARGEST = 0.83


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def site(units, executed, inputs=3, group="g"):
    places = {"w": tuple(range(units))}
    return GateSite(group, "w", inputs, units, executed, places, {"r": tuple(range(units))})


def ratios_for(*sites, hidden=(8,), largest=LARGEST):
    return PerInputPolicy(sites, priced(sites), hidden=hidden, largest=largest)


def priced(sites, shares=None):
    """Prices by which gates have these shares of 1000 multiply-adds; even ones if none are given."""
    whole = np.array([1000 * share for share in shares or [1 / len(sites)] * len(sites)])
    per_unit = np.diag(whole / [site.units for site in sites])
    ones = np.ones(len(sites))
    return InputPrices(2000, 300, SumOfProducts(ones, np.zeros((1, len(sites))), per_unit[None]))


def attached(model, hidden=(8,), prices=None):
    """A fresh PerInputPolicy in a network that has gates."""
    gates = gates_of(model)
    ratios = PerInputPolicy(gates.sites, prices or priced(gates.sites), hidden=hidden, largest=LARGEST)
    ratios.attach_(gates)
    return ratios


def telling_apart(model, images, hidden=(8,), prices=None):
    """A PerInputPolicy with random weights for which images differ in what runs; (it, counts of images)."""
    ratios = attached(model, hidden, prices)
    model(images)
    for number, one in enumerate(gates_of(model).sites):
        gate = gates_of(model).gate_for(one.group)
        losses = torch.arange(len(images), dtype=torch.float32)
        ratios.typical[number].fit_(gate.pooled, gate.scores(gate.pooled), one.executed, losses)
    for seed in count():
        generator = torch.Generator().manual_seed(seed)
        for layer in ratios.policy:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(2 * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.copy_(-layer.weight.sum(1) / 2 if layer is ratios.policy[0] else layer.bias)
        model(images)
        counts = torch.stack(ratios.decided, dim=1)
        if len(counts.unique(dim=0)) > 1:
            return ratios, counts
    raise AssertionError


def saying(ratios, action):
    """Have the policy always say the same."""
    ratios.policy[-1].weight.zero_()
    ratios.policy[-1].bias.fill_(action)
    return ratios


def test_it_is_found_where_it_is_attached():
    model = compressed("plain", 0.0, 0.4).model
    assert find_per_input_policy(None) is None
    assert find_per_input_policy(gates_of(model)) is None
    ratios = attached(model)
    assert find_per_input_policy(gates_of(model)) is ratios
    kept = [name for name in model.state_dict() if name.startswith(f"runtime_gates.{PER_INPUT}.")]
    assert len(kept) == len(ratios.state_dict())


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_a_fresh_policy_is_the_plan(name):
    found, images = compressed(name, 0.3, 0.4), EXAMPLES[name].images(4)
    expected = found.model(images)
    ratios = attached(found.model)
    assert torch.equal(found.model(images), expected)
    assert [counts.tolist() for counts in ratios.decided] == [[one.executed] * 4 for one in found.gates]


@pytest.mark.parametrize("units", [1, 2, 3, 7, 16, 40, 64, 2048])
def test_an_action_of_zero_is_every_plan_exactly(units):
    for executed in range(1, units + 1, 1 + units // 100):
        ratios = ratios_for(site(units, executed))
        assert ratios.decode(0, torch.zeros(2)).tolist() == [executed] * 2


@pytest.mark.parametrize(("action", "ratio"), [(-1.0, 0.0), (-7.0, 0.0), (1.0, LARGEST), (9.0, LARGEST)])
def test_the_ends_of_the_range_run_everything_and_skip_the_largest_share(action, ratio):
    for units in (1, 2, 9, 64, 500):
        ratios = saying(ratios_for(site(units, 1 + units // 2)), action)
        counts = ratios.counts(0, torch.randn(3, 3), torch.randn(3, units))
        assert counts.dtype == torch.int64
        assert counts.tolist() == [kept_units(units, ratio)] * 3


def test_an_action_becomes_the_units_that_its_ratio_keeps():
    compared = 0
    for units, executed in [(1, 1), (5, 3), (16, 10), (24, 23), (64, 20), (250, 150)]:
        ratios, planned = ratios_for(site(4, 2), site(units, executed)), 1 - executed / units
        for step in range(-50, 51):
            action = step / 50
            ratio = planned * (1 + action) if action < 0 else planned + (LARGEST - planned) * action
            if abs((units * (1 - ratio)) % 1 - 0.5) > 1e-4:  # else rounding decides
                compared += 1
                assert int(ratios.decode(1, torch.tensor([action]))[0]) == kept_units(units, ratio)
    assert compared > 550


def test_the_offset_is_added_to_every_action():
    ratios, actions = ratios_for(site(64, 40)), torch.linspace(-1, 1, 33)
    expected = ratios.decode(0, (actions + 0.25).clamp(-1, 1))
    assert expected.tolist() != ratios.decode(0, actions).tolist()
    ratios.offset.fill_(0.25)
    assert ratios.decode(0, actions).tolist() == expected.tolist()


def observed(ratios, pooled, scores):
    """What is seen at each gate: (features by name, all tensors)."""
    seen = []
    for number in range(len(ratios.units)):
        seen.append(ratios.observe(number, pooled[number], scores[number]))
        ratios.counts(number, pooled[number], scores[number])
    return [dict(zip(FEATURES, one.T, strict=True)) for one in seen], seen


def test_on_the_plan_an_input_has_spent_what_the_plan_has():
    sites = [site(8, 6), site(4, 1), site(16, 4)]
    ratios = PerInputPolicy(sites, priced(sites, [0.5, 0.2, 0.3]), hidden=(8,), largest=LARGEST)
    pooled, scores = [torch.randn(2, 3)] * 3, [torch.randn(2, units) for units in (8, 4, 16)]
    named, _ = observed(ratios, pooled, scores)
    for field, expected in {
        "passed": [0, 0.5, 0.7],
        "share": [0.5, 0.2, 0.3],
        "planned": [0.25, 0.75, 0.75],
        "last": [0, 0.25, 0.75],
        "spent": [0.5, 0.5, 0.5],
    }.items():
        found = [one[field].tolist() for one in named]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected)[:, None].expand(3, 2))


def test_who_skips_more_has_spent_less():
    ratios = saying(ratios_for(site(8, 4), site(8, 4)), 0.5)
    pooled, scores = [torch.randn(2, 3)] * 2, [torch.randn(2, 8)] * 2
    frugal = observed(ratios, pooled, scores)[0][1]
    lavish = observed(saying(ratios, -0.5), pooled, scores)[0][1]
    assert (frugal["spent"] < 0.5).all()
    assert (lavish["spent"] > 0.5).all()
    assert (frugal["last"] > lavish["last"]).all()


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("action", [-1.0, 1.0])
def test_features_lie_between_zero_and_one_for_absurd_inputs(fitted, action):
    sites = [site(8, 6), site(4, 1)]
    ratios = saying(ratios_for(*sites), action)
    if fitted:
        for one, typical in zip(sites, ratios.typical, strict=True):
            typical.fit_(0.1 * torch.randn(20, 3), torch.randn(20, one.units), one.executed, torch.randn(20))
    rows = torch.tensor([[1e6] * 3, [-1e6] * 3, [0.0] * 3, [1e6, -1e6, 0.0], [1e38, -1e38, 1e38]])
    scores = [rows.clamp(-1e30, 1e30).repeat(1, 3)[:, : one.units] for one in sites]
    _, seen = observed(ratios, [rows, rows], scores)
    for features in seen:
        assert features.shape == (5, len(FEATURES))
        assert features.dtype == torch.float32
        assert ((features >= 0) & (features <= 1)).all()  # nor are they NaN


def test_batches_of_any_size_follow_each_other():
    model, images = compressed("padded", 0.0, 0.4, "least-squares").model, EXAMPLES["padded"].images(7)
    ratios, counts = telling_apart(model, images)
    expected = model(images)
    for part in (slice(0, 5), slice(5, 7), slice(3, 4), slice(0, 7)):
        torch.testing.assert_close(model(images[part]), expected[part])
        assert torch.equal(torch.stack(ratios.decided, dim=1), counts[part])


def test_its_multiply_adds_by_hand():
    ratios = ratios_for(site(8, 6, inputs=3), site(4, 1, inputs=5), hidden=(7, 2))
    features = len(FEATURES)
    assert ratios.macs == 2 * (features * 7 + 7 * 2 + 2 * 1) + 3 + 5


def test_a_copy_of_the_network_decides_for_itself():
    model, images = compressed("plain", 0.0, 0.4).model, example("plain")[2]
    ratios, counts = telling_apart(model, images)
    before, expected = snapshot(model), model(images)
    twin = copy.deepcopy(model)
    others = find_per_input_policy(gates_of(twin))
    assert others is not ratios
    assert (others.decided, len(ratios.decided)) == ([], len(counts.T))  # images in flight stay behind
    assert torch.equal(twin(images), expected)
    others.offset.fill_(-1e3)  # all units
    twin(images[:1])
    assert torch.stack(others.decided, dim=1).tolist() == [[one.units for one in gates_of(twin).sites]]
    assert torch.equal(torch.stack(ratios.decided, dim=1), counts)  # the twin's run is not its own
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(images), expected)


def calibration(images, seed=0, inputs=6, units=10):
    """(pooled inputs, scores, losses that are linear in the inputs)"""
    generator = torch.Generator().manual_seed(seed)
    pooled = 5 + torch.randn(images, inputs, generator=generator) * torch.arange(1, inputs + 1)
    scores = torch.randn(images, units, generator=generator)
    planted = torch.tensor([1.0, -0.5, 0.0, 0.3, 0.0, 0.2])
    return pooled, scores, pooled @ planted


def test_as_many_typical_scores_pass_as_the_plan_has_units():
    pooled, scores, losses = calibration(30)
    for executed in (1, 4, 9):
        typical = InputStatistics(6)
        typical.fit_(pooled, scores, executed, losses)
        assert (scores > typical.threshold).sum() == executed * len(scores)
        assert not (scores - typical.threshold).abs().min() < 1e-7  # none lies on it


def test_a_typical_input_looks_like_par():
    pooled, scores, losses = calibration(200)
    typical = InputStatistics(6)
    typical.fit_(pooled, scores, 4, losses)
    means = typical.summary(pooled, scores).mean(0)
    assert ((means > 0.4) & (means < 0.6)).all()


def test_demand_grows_with_the_scores_that_pass():
    pooled, scores, losses = calibration(200)
    typical = InputStatistics(6)
    typical.fit_(pooled, scores, 4, losses)
    passing = (scores > scores.flatten().sort(descending=True).values[800]).sum(1)
    demand = InputSummary(*typical.summary(pooled, scores).T).share_above_threshold
    assert demand[passing < 4].max() < 0.5 < demand[passing > 4].min()


def test_difficulty_predicts_losses_that_are_linear_in_the_input():
    pooled, scores, losses = calibration(200)
    typical = InputStatistics(6)
    typical.fit_(pooled, scores, 4, losses)
    fresh, others, expected = calibration(300, seed=1)
    difficulty = InputSummary(*typical.summary(fresh, others).T).difficulty
    assert torch.corrcoef(torch.stack([difficulty, expected]))[0, 1] > 0.95
