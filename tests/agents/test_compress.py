"""One call, from a network, its images and a budget to a smaller network; on a real environment."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunegym.agents import compress
from prunegym.agents.learning import training
from prunegym.pruning.errors import UnknownNameError


@pytest.fixture(scope="module")
def network():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 10, 3), nn.BatchNorm2d(10), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(40, 3)),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


@pytest.fixture(scope="module")
def images(network):
    pixels = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return TensorDataset(pixels, network(pixels).argmax(1))


def small(network, images, **settings):
    loader = DataLoader(images, batch_size=16)
    given = {"calibration": loader, "reward": loader, "budget": {"params": 0.6}, "episodes": 9}
    return compress(network, **{**given, **settings})


def n_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_network_that_comes_out_is_within_the_budget_and_runs(network, images):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = small(network, images)
    assert n_parameters(found.model) <= 0.6 * n_parameters(network)
    assert found.result.shares["params"] == n_parameters(found.model) / n_parameters(network)
    with torch.no_grad():
        right = found.model(images.tensors[0]).argmax(1) == images.tensors[1]
    assert found.result.accuracy == pytest.approx(float(right.double().mean()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_score_function_takes_the_place_of_images(network, images):
    found = small(network, images, reward=None, score=n_parameters)
    assert found.result.reward["score"] == n_parameters(found.model)
    assert found.result.accuracy is None


def test_amc_takes_actions_for_ratios(network, images):
    found = small(network, images, algorithm="amc", budget={"macs": 0.3})
    assert {decision.get("runtime_ratio", 0.0) for decision in found.result.plan.values()} == {0.0}
    assert found.result.shares["macs"] < 0.28  # an upper wall only


def test_the_same_seed_gives_the_same_network(network, images):
    first, second = (small(network, images, seed=3) for _ in range(2))
    assert first.result == second.result
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_settings_reach_the_environment(network, images):
    found = small(network, images, protect=("0",), budget={"macs": 0.9})
    assert set(found.result.plan) == {"3"}
    assert found.model[0].out_channels == 8


def test_an_unknown_algorithm_is_refused(network, images):
    with pytest.raises(UnknownNameError, match="'ppo'"):
        small(network, images, algorithm="pppo")


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_is_shown_where_it_is_asked_for(network, images, monkeypatch, progress):
    shown, bar = [], training.EpisodeBar
    monkeypatch.setattr(
        training, "EpisodeBar", lambda *args, **given: shown.append(given["shown"]) or bar(*args, **given)
    )
    small(network, images, episodes=1, progress=progress)
    assert shown == [progress]
