"""Policy files, for reuse on other networks: safetensors and JSON; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from prunegym.agents.errors import PolicyError
from prunegym.agents.interface import GymEnv, action_schema, episodic_environment, observation_schema
from prunegym.agents.learning.algorithms import ALGORITHMS
from prunegym.envs.action import RUNTIME, ActionMode
from prunegym.pruning.errors import UnknownNameError, one_line

POLICY_VERSION = 3
TENSORS = "policy.safetensors"
DESCRIPTION = "policy.json"
NET_ARCH = "policy_kwargs.net_arch"
SHAPE = ("net_arch", "n_critics")  # what decides the shapes of the tensors
LONGEST_REASON = 160  # characters of what torch says of tensors that do not fit
BUILTIN = Path(__file__).parents[1] / "builtin"


@dataclass(frozen=True)
class Policy:
    """A policy as its folder holds it, found to fit an environment."""

    folder: Path
    description: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """What tells these weights from others."""
        return hashlib.sha256((self.folder / TENSORS).read_bytes()).hexdigest()[:16]

    def check_size(self) -> None:
        """Refuse layers that are larger or more than the tensors, before memory is taken for them.

        Raises:
            PolicyError: the description asks for such.
        """
        shape = self.description["shape"]
        widest = max((size for tensor in self.tensors.values() for size in tensor.shape), default=0)
        for count, most in (
            (max(shape["net_arch"], default=0), widest),
            (len(shape["net_arch"]), len(self.tensors)),
            (shape.get("n_critics", 1), len(self.tensors)),
        ):
            if count > most:
                raise self._misfit(ValueError(f"its shape asks for {count}, there are {most}"))

    def build(self, env: GymEnv) -> BasePolicy:
        """Return the policy, fit to act in an environment.

        Raises:
            PolicyError: its tensors do not fit its description.
        """
        policy_class = ALGORITHMS[self.description["algorithm"]].model_class.policy_aliases["MlpPolicy"]
        try:
            policy = policy_class(  # the learning rate only feeds an optimiser that is never stepped
                env.observation_space, env.action_space, lambda _: 0.0, **self.description["shape"]
            )
        except TypeError as error:  # critics to count where the algorithm has none
            raise self._misfit(error) from error
        self.load_into_(policy)
        return policy

    def load_into_(self, policy: BasePolicy) -> None:
        """Give a policy of the same shape these weights.

        Raises:
            PolicyError: the shapes differ.
        """
        try:
            policy.load_state_dict(self.tensors)
        except RuntimeError as error:
            raise self._misfit(error) from error

    def _misfit(self, error: Exception) -> PolicyError:
        reason = shorten(str(error), LONGEST_REASON, placeholder=" ...")
        return PolicyError(f"{self.folder}: {TENSORS} does not fit {DESCRIPTION} ({reason}); copy it anew")


def save_policy(model: BaseAlgorithm, env: GymEnv, folder: Path, *, learned_on: Mapping[str, Any]) -> None:
    """Write the policy and what it takes to rebuild it into an existing folder.

    Args:
        model: of an algorithm in `ALGORITHMS`.
        env: the environment it learned on; its observation schema is kept with the policy.
        folder: gets `policy.safetensors` and `policy.json`.
        learned_on: plain data for whoever wonders where the policy came from: networks, budgets, episodes.
    """
    algorithm = next(entry for entry in ALGORITHMS.values() if type(model) is entry.model_class)
    # copies: networks that share a layer name it twice, which the format does not take
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in model.policy.state_dict().items()}
    family = algorithm.policies or algorithm.name
    if family == "ppo" and not any(episodic_environment(env).gated):
        _leave_gates_out_(tensors)
    save_file(tensors, folder / TENSORS)
    description = {
        "version": POLICY_VERSION,
        "algorithm": family,
        "observation": observation_schema(env),
        "action": action_schema(env),
        "shape": {key: model.policy_kwargs[key] for key in SHAPE if key in model.policy_kwargs},
        "learned_on": dict(learned_on),
    }
    _write_description(folder, description)


def save_mean_policy(policies: Sequence[Policy], folder: Path, *, learned_on: Mapping[str, Any]) -> None:
    """Write the mean of several linear policies, which errs less than each: of seeds, or of networks.

    Args:
        policies: of the same algorithm and observations, without layers.
        folder: an existing one, which gets what `save_policy` writes.
        learned_on: see `save_policy`.

    Raises:
        PolicyError: a policy is not linear, or not like the first.
    """
    descriptions = [{**policy.description, "learned_on": dict(learned_on)} for policy in policies]
    for policy, description in zip(policies, descriptions, strict=True):
        if description["shape"]["net_arch"] or description != descriptions[0]:
            raise PolicyError(f"{policy.folder}: only linear policies of one kind have a mean; train others")
    names = policies[0].tensors
    means = {name: torch.stack([one.tensors[name] for one in policies]).mean(0) for name in names}
    save_file(means, folder / TENSORS)
    _write_description(folder, descriptions[0])


def _write_description(folder: Path, description: Mapping[str, Any]) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_policy(folder: Path, env: GymEnv) -> Policy:
    """Read a saved policy and check that it can act in an environment.

    Args:
        folder: what `save_policy` filled.
        env: the environment to act in; it must observe what the policy learned from.

    Raises:
        PolicyError: a file is missing or damaged, the version or the algorithm unknown, or observations or
            actions differ.
    """
    description = _read_description(folder / DESCRIPTION)
    for kind, here in (("observation", observation_schema(env)), ("action", action_schema(env))):
        if description[kind] != here:
            raise PolicyError(
                f"{folder}: the {kind}s of the policy are not those of this environment: "
                f"{_differences(description[kind], here)}; train a policy with this release"
            )
    try:
        ALGORITHMS[str(description["algorithm"])]
    except UnknownNameError as error:
        raise PolicyError(f"{folder / DESCRIPTION}: {error}") from error
    policy = Policy(folder, description, _read_tensors(folder / TENSORS))
    policy.check_size()
    return policy


def action_mode(folder: Path) -> ActionMode:
    """Return what a saved policy's actions are to be taken for, so that an environment can be made to fit.

    Raises:
        PolicyError: the folder holds no policy of this version. Other flaws are left for `load_policy`.
    """
    action = _read_description(folder / DESCRIPTION)["action"]
    return "raw" if isinstance(action, dict) and action.get("mode") == "raw" else "centred"


def _differences(there: Any, here: Mapping[str, Any]) -> str:
    """Say in which entries a policy's schema and an environment's differ; of lists, what one has alone."""
    if not isinstance(there, dict) or set(there) != set(here):
        return f"{shorten(str(there), LONGEST_REASON)} there, entries {', '.join(here)} here"
    found = []
    for key in here:
        one, other = there[key], here[key]
        if one != other and isinstance(one, list) and isinstance(other, list):
            alone = [name for name in one if name not in other], [name for name in other if name not in one]
            one, other = alone if any(alone) else (one, other)
        if one != other:
            found.append(f"{key} {one!r} there, {other!r} here")
    return "; ".join(found)


def fitting_hyperparameters(
    policy: Policy, algorithm: str, hyperparameters: Mapping[str, Any], *, overridden: Collection[str] = ()
) -> dict[str, Any]:
    """Return hyper-parameters with the layer widths of a policy to go on from.

    Policies of PPO can be imitated, so theirs need not be kept: a linear one, of several networks, takes the
    algorithm's own, and whatever was asked for is taken.

    Args:
        policy: to go on from.
        algorithm: that is to go on.
        hyperparameters: its own, with what was asked for.
        overridden: the keys that were asked for.

    Raises:
        PolicyError: the policy is of another algorithm, or other widths were asked for.
    """
    made_by = policy.description["algorithm"]
    takers = [name for name, entry in ALGORITHMS.items() if made_by in (name, entry.policies)]
    if algorithm not in takers:
        raise PolicyError(
            f"{policy.folder} is a policy of {made_by}, not of {algorithm}; use --algo {' or '.join(takers)}"
        )
    widths = policy.description["shape"]["net_arch"]
    asked = NET_ARCH in overridden
    if made_by == "ppo" and (asked or not widths):
        return dict(hyperparameters)
    if asked and hyperparameters["policy_kwargs"]["net_arch"] != widths:
        raise PolicyError(f"{policy.folder} has layers of {widths}; leave {NET_ARCH} out")
    return {**hyperparameters, "policy_kwargs": {**hyperparameters["policy_kwargs"], "net_arch": widths}}


def _leave_gates_out_(tensors: dict[str, Tensor]) -> None:
    """Have a policy that never met a gate ask for none: its runtime actions are an accident of the training.

    Exploring on, it will try one now and then.
    """
    tensors["action_net.weight"][RUNTIME] = 0.0
    tensors["action_net.bias"][RUNTIME] = -0.5
    tensors["log_std"][RUNTIME] = -1.0


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(
            f"cannot read the policy {path}: {one_line(error)}; name the folder of a policy, or builtin"
        ) from error
    version = description.get("version") if isinstance(description, dict) else None
    if version != POLICY_VERSION:
        raise PolicyError(
            f"{path}: expected a policy of version {POLICY_VERSION}, got {version!r}; train it anew"
        )
    missing = {"algorithm", "observation", "action", "shape"} - set(description)
    if missing:
        raise PolicyError(f"{path}: {', '.join(sorted(missing))} missing; copy the policy anew")
    shape = description["shape"]
    if not _is_shape(shape):
        raise PolicyError(f"{path}: shape must hold a list of layer widths, got {shape!r}; copy it anew")
    return description


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, dict) or not {"net_arch"} <= set(shape) <= set(SHAPE):
        return False
    counts = (
        [*shape["net_arch"], shape.get("n_critics", 1)] if isinstance(shape["net_arch"], list) else [None]
    )
    return all(type(count) is int and count > 0 for count in counts)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PolicyError(
            f"cannot read the policy {path}: {one_line(error)}; copy the policy anew"
        ) from error
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise PolicyError(f"{path}: {', '.join(bad)} not finite; copy the policy anew")
    return tensors
