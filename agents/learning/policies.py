"""Policy files for reuse on other networks: safetensors and JSON, so that nothing is unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from prunegym.agents.errors import PolicyError
from prunegym.agents.interface import GymEnv, action_schema, episodic_environment, observation_schema
from prunegym.agents.learning.algorithms import ALGORITHMS
from prunegym.envs.action import ActionMode
from prunegym.envs.observation import context_features
from prunegym.pruning.errors import UnknownNameError, one_line
from prunegym.pruning.files.content import read_described
from prunegym.pruning.files.plain_data import read_json, version_of, write_json
from prunegym.pruning.machine_failures import raise_machine_failure

POLICY_VERSION = 4
CHECKSUM = "weights_sha256"  # the entry of the description with the hash of the file of tensors
# no sensible weight is beyond it; logits and values of larger ones could overflow
LARGEST_WEIGHT = 1e6
LARGEST_LOG_STD = 20.0
TENSORS = "policy.safetensors"
DESCRIPTION = "policy.json"
NET_ARCH = "policy_kwargs.net_arch"
SHAPE = ("net_arch", "n_critics")  # the arguments that decide the shapes of the tensors
MAX_REASON_CHARACTERS = 160  # of another library's message that is quoted in an error
BUILTIN = Path(__file__).parents[1] / "builtin"


@dataclass(frozen=True)
class Policy:
    """A policy as read from its folder, checked to fit an environment."""

    folder: Path
    description: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """Hash that identifies the weights."""
        return str(self.description[CHECKSUM])[:16]

    def check_size(self) -> None:
        """Refuse a description of larger or more layers than there are tensors, before memory is allocated.

        Raises:
            PolicyError: the description has such layers.
        """
        shape = self.description["shape"]
        widest = max((size for tensor in self.tensors.values() for size in tensor.shape), default=0)
        for count, maximum in (
            (max(shape["net_arch"], default=0), widest),
            (len(shape["net_arch"]), len(self.tensors)),
            (shape.get("n_critics", 1), len(self.tensors)),
        ):
            if count > maximum:
                raise self._misfit(ValueError(f"its shape asks for {count}, there are {maximum}"))

    def build(self, env: GymEnv) -> BasePolicy:
        """Return the policy as a network that can act in an environment.

        Raises:
            PolicyError: its tensors do not fit its description.
        """
        policy_class = ALGORITHMS[self.description["algorithm"]].model_class.policy_aliases["MlpPolicy"]
        try:
            policy = policy_class(  # the learning rate is for an optimiser that is never stepped
                env.observation_space, env.action_space, lambda _: 0.0, **self.description["shape"]
            )
        except TypeError as error:  # a number of critics for an algorithm that has none
            raise self._misfit(error) from error
        self.load_into_(policy)
        return policy

    def load_into_(self, policy: BasePolicy) -> None:
        """Copy the weights into a policy network of the same shape.

        Raises:
            PolicyError: the shapes differ.
        """
        try:
            policy.load_state_dict(self.tensors)
        except RuntimeError as error:
            raise self._misfit(error) from error

    def _misfit(self, error: Exception) -> PolicyError:
        reason = shorten(str(error), MAX_REASON_CHARACTERS, placeholder=" ...")
        return PolicyError(f"{self.folder}: {TENSORS} does not fit {DESCRIPTION} ({reason}); copy it anew")


def save_policy(model: BaseAlgorithm, env: GymEnv, folder: Path, *, learned_on: Mapping[str, Any]) -> None:
    """Write a policy and the description that `load_policy` needs into an existing folder.

    Entries of actions that had no effect at any site, such as runtime ratios where no group takes a gate,
    were never trained: the policy is saved with such entries of little compression. With exploration it tries
    the technique now and then.

    Args:
        model: a model of an algorithm in `ALGORITHMS`.
        env: the environment it learned in; its observation schema is saved with the policy.
        folder: the folder that gets `policy.safetensors` and `policy.json`.
        learned_on: the origin of the policy, as plain data for the user: networks, budgets, episodes.
    """
    algorithm = next(entry for entry in ALGORITHMS.values() if type(model) is entry.model_class)
    # copies, as networks that share a layer name it twice, which the format does not allow
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in model.policy.state_dict().items()}
    family = algorithm.policies or algorithm.name
    if family == "ppo":
        untrained = torch.from_numpy(~episodic_environment(env).admitted.any(axis=0))
        tensors["action_net.weight"][untrained] = 0.0
        tensors["action_net.bias"][untrained] = -0.5
        tensors["log_std"][untrained] = -1.0
    description = {
        "version": POLICY_VERSION,
        "algorithm": family,
        "observation": observation_schema(env),
        "action": action_schema(env),
        "shape": {key: model.policy_kwargs[key] for key in SHAPE if key in model.policy_kwargs},
        "learned_on": dict(learned_on),
    }
    _write(folder, description, tensors)


def save_mean_policy(policies: Sequence[Policy], folder: Path, *, learned_on: Mapping[str, Any]) -> None:
    """Write the mean of several linear policies, such as those of several seeds; it errs less than each.

    Args:
        policies: policies of the same algorithm and observations, without hidden layers.
        folder: an existing folder, which gets the files that `save_policy` writes.
        learned_on: see `save_policy`.

    Raises:
        PolicyError: a policy is not linear, or not like the first.
    """
    descriptions = [
        {**policy.description, "learned_on": dict(learned_on), CHECKSUM: None} for policy in policies
    ]
    for policy, description in zip(policies, descriptions, strict=True):
        if description["shape"]["net_arch"] or description != descriptions[0]:
            raise PolicyError(f"{policy.folder}: only linear policies of one kind have a mean; train others")
    names = policies[0].tensors
    means = {name: torch.stack([policy.tensors[name] for policy in policies]).mean(0) for name in names}
    _write(folder, descriptions[0], means)


def _write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    weights = save(dict(tensors))
    (folder / TENSORS).write_bytes(weights)
    write_json(folder / DESCRIPTION, {**description, CHECKSUM: hashlib.sha256(weights).hexdigest()})


def load_policy(folder: Path, env: GymEnv) -> Policy:
    """Read a saved policy and check that it can act in an environment.

    A policy that knows techniques which are not on in the environment acts as if they could not decide at any
    site.

    Args:
        folder: a folder that `save_policy` wrote.
        env: the environment to act in; it must have the observations that the policy learned from.

    Raises:
        PolicyError: a file is missing or damaged, the version or the algorithm is unknown, the policy lacks a
            technique that is on, or observations or actions differ otherwise.
    """
    description = _read_description(folder / DESCRIPTION)
    tensors = None
    if known_techniques(folder, description) != list(episodic_environment(env).techniques):
        found = _read_tensors(folder, description)
        try:
            description, tensors = with_techniques(folder, description, found, env)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise PolicyError(
                f"{folder}: {TENSORS} does not fit {DESCRIPTION} ({one_line(error)}); copy it anew"
            ) from error
    for kind, schema in (("observation", observation_schema(env)), ("action", action_schema(env))):
        if description[kind] != schema:
            raise PolicyError(
                f"{folder}: the {kind}s of the policy are not those of this environment: "
                f"{_differences(description[kind], schema)}; train a policy with this release"
            )
    try:
        ALGORITHMS[str(description["algorithm"])]
    except UnknownNameError as error:
        raise PolicyError(f"{folder / DESCRIPTION}: {error}") from error
    policy = Policy(folder, description, _read_tensors(folder, description) if tensors is None else tensors)
    policy.check_size()
    return policy


def action_mode(folder: Path) -> ActionMode:
    """Return the action mode of a saved policy, so that a suitable environment can be made.

    Raises:
        PolicyError: the folder holds no policy of this version. `load_policy` reports other defects.
    """
    action = _read_description(folder / DESCRIPTION)["action"]
    return "raw" if isinstance(action, dict) and action.get("mode") == "raw" else "centred"


def known_techniques(folder: Path, description: Mapping[str, Any]) -> list[str]:
    """Return the techniques that a policy was learned with, by name.

    Raises:
        PolicyError: its description does not say.
    """
    action = description.get("action")
    techniques = action.get("techniques") if isinstance(action, dict) else None
    if not isinstance(techniques, list) or not all(isinstance(name, str) for name in techniques):
        raise PolicyError(f"{folder / DESCRIPTION} does not say what its actions mean; copy it anew")
    return techniques


def with_techniques(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], env: GymEnv
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a policy's description and tensors for an environment in which fewer techniques are on.

    Its features and actions of the other techniques are left out. Where a technique cannot decide, its
    features are constants (0 of those that are standard scores, -1 of others); what they add is moved into
    the biases.

    Raises:
        PolicyError: the policy lacks a technique that is on, or its algorithm allows no fewer.
    """
    known, wanted = known_techniques(folder, description), episodic_environment(env).techniques
    lacking = [name for name in wanted if name not in known]
    if lacking:
        raise PolicyError(
            f"{folder}: the policy was learned with the techniques {' '.join(known)} and knows nothing of "
            f"{' '.join(lacking)}; use --techniques {' '.join(known)}, or train one with {' '.join(wanted)}"
        )
    if description.get("algorithm") != "ppo":
        raise PolicyError(
            f"{folder}: the policy was learned with the techniques {' '.join(known)}, and one of this "
            f"algorithm acts with all of them; use --techniques {' '.join(known)}"
        )
    names, actions = list(description["observation"]["names"]), list(description["action"]["names"])
    here = set(episodic_environment(env).observation_names)
    kept = torch.tensor([name in here for name in names])
    constant = -torch.tensor(context_features(names)).float()[~kept]
    rows = torch.tensor([name in wanted for name in known])
    fitted = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dim() == 2 and tensor.size(1) == len(names):
            bias = name.removesuffix("weight") + "bias"
            fitted[bias] = fitted[bias] + tensor[:, ~kept] @ constant
            fitted[name] = tensor[:, kept]
    for name in ("action_net.weight", "action_net.bias", "log_std"):
        fitted[name] = fitted[name][rows]
    observation = {**description["observation"], "names": [name for name in names if name in here]}
    action = {
        **description["action"],
        "techniques": [name for name in known if name in wanted],
        "names": [key for key, name in zip(actions, known, strict=True) if name in wanted],
    }
    return {**description, "observation": observation, "action": action}, fitted


def _differences(saved: Any, expected: Mapping[str, Any]) -> str:
    """Return the entries in which a policy's schema and an environment's differ; of lists, the difference."""
    if not isinstance(saved, dict) or set(saved) != set(expected):
        return f"{shorten(str(saved), MAX_REASON_CHARACTERS)} there, entries {', '.join(expected)} here"
    differences = []
    for key in expected:
        mine, other = saved[key], expected[key]
        if mine != other and isinstance(mine, list) and isinstance(other, list):
            exclusive = (
                [name for name in mine if name not in other],
                [name for name in other if name not in mine],
            )
            mine, other = exclusive if any(exclusive) else (mine, other)
        if mine != other:
            differences.append(f"{key} {mine!r} there, {other!r} here")
    return "; ".join(differences)


def fitting_hyperparameters(
    policy: Policy, algorithm: str, hyperparameters: Mapping[str, Any], *, overridden: Collection[str] = ()
) -> dict[str, Any]:
    """Return hyper-parameters with the layer widths of the policy to continue from.

    Policies of PPO can be imitated, so that other widths are possible: the user's, or in place of a linear
    policy, which was learned on several networks, the algorithm's own.

    Args:
        policy: the policy to continue from.
        algorithm: name of the algorithm that continues.
        hyperparameters: its hyper-parameters, the user's values included.
        overridden: the keys of the user's values.

    Raises:
        PolicyError: the policy is of another algorithm, or the user's widths are not those of the policy.
    """
    made_by = policy.description["algorithm"]
    compatible = [name for name, entry in ALGORITHMS.items() if made_by in (name, entry.policies)]
    if algorithm not in compatible:
        raise PolicyError(
            f"{policy.folder} is a policy of {made_by}, not of {algorithm}; "
            f"use --algo {' or '.join(compatible)}"
        )
    widths = policy.description["shape"]["net_arch"]
    if made_by == "ppo" and (NET_ARCH in overridden or not widths):
        return dict(hyperparameters)
    if NET_ARCH in overridden and hyperparameters["policy_kwargs"]["net_arch"] != widths:
        raise PolicyError(f"{policy.folder} has layers of {widths}; leave {NET_ARCH} out")
    return {**hyperparameters, "policy_kwargs": {**hyperparameters["policy_kwargs"], "net_arch": widths}}


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = read_json(path)
    except (OSError, ValueError) as error:
        raise_machine_failure(error)
        raise PolicyError(
            f"cannot read the policy {path}: {one_line(error)}; name the folder of a policy, or builtin"
        ) from error
    if version_of(description) != POLICY_VERSION:
        version = description.get("version") if isinstance(description, dict) else None
        raise PolicyError(
            f"{path}: expected a policy of version {POLICY_VERSION}, got {version!r}; train it anew"
        )
    missing = {"algorithm", "observation", "action", "shape", CHECKSUM} - set(description)
    if missing:
        raise PolicyError(f"{path}: {', '.join(sorted(missing))} missing; copy the policy anew")
    shape = description["shape"]
    if not _is_shape(shape):
        raise PolicyError(f"{path}: shape must hold a list of layer widths, got {shape!r}; copy it anew")
    return description


def _is_shape(shape: Any) -> bool:
    """Return whether `shape` has a list of layer widths and at most a number of critics, all positive."""
    if not isinstance(shape, dict) or not {"net_arch"} <= set(shape) <= set(SHAPE):
        return False
    counts = (
        [*shape["net_arch"], shape.get("n_critics", 1)] if isinstance(shape["net_arch"], list) else [None]
    )
    return all(type(count) is int and count > 0 for count in counts)


def _read_tensors(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    path, anew = folder / TENSORS, "copy the policy anew"
    try:
        tensors = load(read_described(path, description[CHECKSUM], description=DESCRIPTION, way_out=anew))
    except ValueError as error:
        raise PolicyError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise_machine_failure(error)
        raise PolicyError(f"cannot read the policy {path}: {one_line(error)}; {anew}") from error
    bad = [name for name, tensor in tensors.items() if not _is_sensible(name, tensor)]
    if bad:
        raise PolicyError(f"{path}: {', '.join(bad)} not finite, or far too large; train the policy anew")
    return tensors


def _is_sensible(name: str, tensor: Tensor) -> bool:
    largest = LARGEST_LOG_STD if name.endswith("log_std") else LARGEST_WEIGHT
    return tensor.is_floating_point() and bool((tensor.abs() <= largest).all())  # false of a NaN
