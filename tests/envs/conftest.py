"""A small residual network with images of its own, and its environment."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunegym.envs import LayerPruningEnv, make_env
from prunegym.envs.normalisation import ObservationNormalizer
from tests.pruning.example_networks import EXAMPLES


def labelled(name: str, count: int = 24, seed: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """An example network, images, and labels of which the network knows about three quarters."""
    model, images = EXAMPLES[name].model(), EXAMPLES[name].images(count, seed)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::4] = (labels[::4] + 1) % 4
    return model, images, labels


def loader(images: Tensor, labels: Tensor, **settings: Any) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), batch_size=8, **settings)


def make_small_env(name: str = "residual", **settings: Any) -> LayerPruningEnv:
    model, images, labels = labelled(name)
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    given = {"model": model, "calibration": batches, "reward": batches, "budget": {"macs": 0.5}}
    return make_env(**{**given, **settings})


def features_of(env: LayerPruningEnv, observation: NDArray[np.float32]) -> SimpleNamespace:
    """The features of an observation, by name."""
    return SimpleNamespace(**dict(zip(env.observation_names, observation.tolist(), strict=True)))


@pytest.fixture
def small_env() -> Callable[..., LayerPruningEnv]:
    """Make the environment of an example network; settings go to `make_env`."""
    return make_small_env


@pytest.fixture
def features_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let environments observe the features themselves; their normalisation has tests of its own."""
    monkeypatch.setattr(ObservationNormalizer, "normalize", lambda self, features: features)
