"""The checks of one network: pruned by this project, and by Torch-Pruning."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.errors import PruningError, one_line
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.optional_packages import imported
from prunegym.pruning.storage.compressed import Manifest, load_compressed, save_compressed
from prunegym.pruning.surgery.cutting import attempt, cut
from prunegym.pruning.surgery.verification import silenced
from prunegym.scripts.benchmarks.coverage_subject import (
    RATIO,
    Subject,
    largest_error,
    load_subject,
    precise,
    runs_as,
)


def check_prunegym(name: str, *, seed: int) -> dict[str, Any]:
    """Prune a network with this project, and return whether the result is right.

    Returns:
        side: of its images. groups: that may be pruned. frozen: reason -> number of groups. runs: whether the
        cut network gives an output of the same shape. macs: its share of the dense one's. error: against the
        dense network with the cut channels silenced, see `largest_error`. refitted: whether least squares
        gives a network of finite output. reloaded: whether that one gives the same after it was saved and
        loaded.
    """
    subject = load_subject(name, seed=seed)
    with _stage("tracing and calibrating"):
        network = PrunableNetwork(subject.model, real_images(subject.model, [subject.images]))
    graph = network.graph
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.prunable:
        count = max(1, int(group.units * (1 - RATIO) + 0.5))
        kept[group.name] = torch.randperm(group.units, generator=generator)[:count].sort().values
    with _stage("cutting"), torch.no_grad():
        dense, images = precise(subject)
        small = cut(dense, graph, kept).eval()
        with silenced(dense, graph, kept):
            expected = dense(images)
        runs, macs = runs_as(small, dense, images)
        error = largest_error(attempt(small, images), expected, dense(images))
    return {
        "side": subject.images.size(-1),
        "groups": len(graph.prunable),
        "frozen": dict(Counter(group.frozen for group in graph.groups if group.frozen).most_common()),
        "runs": runs,
        "macs": macs,
        "error": error,
        **_compensated(network, subject, name),
    }


def _compensated(network: PrunableNetwork, subject: Subject, name: str) -> dict[str, Any]:
    plan = network.space.even_plan({"channels": RATIO})
    with _stage("compensating"), torch.no_grad():
        compressed = network.apply(plan)
        output = compressed.model.eval()(subject.images)
        refitted = bool(output.isfinite().all())
    with _stage("saving and loading"), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        spec = subject.spec
        evaluation = Evaluation(accuracy=None, macs=0, params=0, bytes=0, agreement=0.0)
        manifest = Manifest(name, spec.input_shape, spec.mean, spec.std, "none", plan, evaluation)
        save_compressed(Path(folder) / "saved", compressed, manifest)
        loaded = load_compressed(Path(folder) / "saved").model
        return {"refitted": refitted, "reloaded": torch.equal(loaded(subject.images), output)}


@contextmanager
def _stage(name: str) -> Iterator[None]:
    try:
        yield
    except PruningError:
        raise
    except Exception as error:  # what would be a crash is a row of the table
        raise_machine_failure(error)
        message = one_line(error)
        raise PruningError(f"{name}: {type(error).__name__}: {message}") from error


def check_torch_pruning(name: str, *, seed: int) -> dict[str, Any]:
    """Prune a network with Torch-Pruning, with the settings of its README, and return whether it is right.

    Returns:
        runs, macs and error as in `check_prunegym`. What it cut is read off the groups it prunes: the inputs
        that every convolution and linear layer loses.
    """
    tp = torch_pruning()
    subject = load_subject(name, seed=seed)
    model = copy.deepcopy(subject.model)
    classes = subject.model(subject.images[:2]).size(-1)
    outputs = (getattr(one, "out_features", getattr(one, "out_channels", None)) for one in model.modules())
    classifier = [one for one, count in zip(model.modules(), outputs, strict=True) if count == classes]
    pruner = tp.pruner.MagnitudePruner(
        model,
        subject.images[:2],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=classifier,
    )
    masks = prune_(pruner, model)
    dense, images = precise(subject)
    model.to(images.dtype)
    runs, macs = runs_as(model, dense, images)
    with torch.no_grad():
        with _masked(dense, masks):
            expected = dense(images)
        error = largest_error(model(images), expected, dense(images)) if runs else None
    return {"runs": runs, "macs": macs, "error": error}


def torch_pruning() -> Any:
    """Return the package that this one is compared with.

    Raises:
        PruningError: it is missing.
    """
    return imported("torch_pruning", extra="compare", purpose="comparisons with Torch-Pruning")


def prune_(pruner: Any, model: nn.Module) -> dict[str, Tensor]:
    """Prune; return, for each layer that loses inputs, which of the dense layer's stay, [cin] of 0 and 1."""
    names = {module: name for name, module in model.named_modules()}
    stay: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for group in pruner.step(interactive=True):
        for dependency, places in group:
            module = dependency.target.module
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)) and (
                dependency.handler.__name__ == "prune_in_channels"  # a depthwise one has only outputs
            ):
                name = names[module]
                cin = getattr(module, "in_features", getattr(module, "in_channels", 0))
                left = stay.get(name, torch.arange(cin))
                mask = masks.setdefault(name, torch.ones(cin))
                mask[left[places]] = 0
                stay[name] = mask.nonzero()[:, 0]
        group.prune()
    return masks


@contextmanager
def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    def hook(mask: Tensor) -> Any:
        def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            shape = (-1,) if isinstance(module, nn.Linear) else (-1, *[1] * (args[0].dim() - 2))
            return (args[0] * mask.view(shape).to(args[0]), *args[1:])

        return silence

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook(mask)) for name, mask in masks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
