"""Episodes recorded before techniques became plug-ins, and the environments that they were played in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunegym.envs import LayerPruningEnv, make_env, parse_budget
from prunegym.pruning.method import Method
from prunegym.pruning.networks.registry import resolve_network
from tests.pruning.example_networks import randomised

SETTINGS: dict[str, tuple[list[str], dict[str, Any]]] = {  # name -> budget, further settings
    "macs": (["macs=0.5"], {}),
    "both": (["macs=0.6", "params=0.5"], {}),
    "round": (["macs=0.5"], {"method": Method(round_to=4)}),
    "raw": (["macs=0.5"], {"actions": "raw"}),
    "range": (["macs=0.3..0.8"], {}),
    "policy": (["macs=0.5"], {}),  # the actions are those of the policy that ships
}
SEED = 5  # of the first reset: of a range it draws the budget


@cache
def recorded() -> dict[str, Any]:
    """`features`, their names, and `episodes`, by the name of their settings."""
    return json.loads((Path(__file__).parent / "recorded" / "episodes.json").read_text(encoding="utf-8"))


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels, at random."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    return [(images, torch.randint(10, (16,), generator=generator))]


def env_of(name: str) -> LayerPruningEnv:
    """The environment of recorded episodes: a ResNet-20 whose weights are at random."""
    budget, settings = SETTINGS[name]
    model = randomised(resolve_network("cifar_resnet20", input_size=(3, 16, 16)).build()).eval()
    given = {"model": model, "calibration": batches(1), "reward": batches(2), "budget": parse_budget(budget)}
    return make_env(**given, **settings)


def replayed(env: LayerPruningEnv, actions: list[list[float]]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The observations of an episode of these actions, [steps + 1, F], and its result."""

    def steps() -> Iterator[NDArray[np.float32]]:
        yield env.reset(seed=SEED)[0]
        for action in actions:
            observation, _, _, _, info = env.step(np.array(action, dtype=np.float32))
            yield observation
        result.update(info["episode_result"])

    result: dict[str, Any] = {}
    return np.array(list(steps())), result
