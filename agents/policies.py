"""Policy files, for reuse on other networks: safetensors and JSON; nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from agents.algorithms import ALGORITHMS
from agents.errors import PolicyError
from agents.interface import ActionRule, GymEnv, observation_schema
from agents.rollout import deterministic

POLICY_VERSION = 1
TENSORS = "policy.safetensors"
DESCRIPTION = "policy.json"


def save_policy(model: BaseAlgorithm, env: GymEnv, folder: Path) -> None:
    """Write the policy and what it takes to rebuild it into an existing folder.

    Args:
        model: of an algorithm in `ALGORITHMS`.
        env: the environment it learned on; its observation schema is kept with the policy.
        folder: gets `policy.safetensors` and `policy.json`.
    """
    algorithm = next(entry for entry in ALGORITHMS.values() if type(model) is entry.model_class)
    description = {
        "version": POLICY_VERSION,
        "algorithm": algorithm.name,
        "observation": observation_schema(env),
        "action": {"names": ["runtime", "static"], "low": -1.0, "high": 1.0},
        "net_arch": model.policy_kwargs["net_arch"],
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.policy.state_dict().items()}
    save_file(tensors, folder / TENSORS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_policy(folder: Path, env: GymEnv) -> ActionRule:
    """Return the saved policy as a rule that acts without exploring.

    Args:
        folder: what `save_policy` filled.
        env: the environment to act in; it must observe what the policy learned from.

    Raises:
        PolicyError: a file is missing or damaged, the version is unknown, or the observations differ.
        UnknownAlgorithmError: the policy is of an algorithm that this release does not have.
    """
    description = _read_description(folder / DESCRIPTION)
    learned, observed = description["observation"], observation_schema(env)
    if learned != observed:
        raise PolicyError(
            f"{folder}: the policy learned from observations {learned}, this environment gives {observed}; "
            "train a policy with this release"
        )
    policy = _build(description, env, folder / DESCRIPTION)
    _load_tensors_(policy, folder / TENSORS)
    return deterministic(policy)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"cannot read the policy {path}: {_one_line(error)}; is this a policy folder?"
        ) from error
    version = description.get("version") if isinstance(description, dict) else None
    if version != POLICY_VERSION:
        raise PolicyError(
            f"{path}: expected a policy of version {POLICY_VERSION}, got {version!r}; train it anew"
        )
    missing = {"algorithm", "observation", "net_arch"} - set(description)
    if missing:
        raise PolicyError(f"{path}: {', '.join(sorted(missing))} missing; copy the policy anew")
    return description


def _build(description: dict[str, Any], env: GymEnv, path: Path) -> BasePolicy:
    widths = description["net_arch"]
    if not isinstance(widths, list) or not all(type(width) is int and width > 0 for width in widths):
        raise PolicyError(
            f"{path}: net_arch must be a list of layer widths, got {widths!r}; copy the policy anew"
        )
    policy_class = ALGORITHMS[description["algorithm"]].model_class.policy_aliases["MlpPolicy"]
    # the learning rate only feeds an optimiser that is never stepped here
    return policy_class(env.observation_space, env.action_space, lambda _: 0.0, net_arch=widths)


def _load_tensors_(policy: BasePolicy, path: Path) -> None:
    try:
        tensors = load_file(path)
        policy.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise PolicyError(
            f"cannot read the policy {path}: {_one_line(error)}; copy the policy anew"
        ) from error
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise PolicyError(f"{path}: {', '.join(bad)} not finite; copy the policy anew")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
