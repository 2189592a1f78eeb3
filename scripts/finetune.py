"""Train a compressed network, its runtime gates included, on labels or to follow the dense network."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from prunegym.envs import Budget, NetworkSource, count_classes, trains_itself
from prunegym.envs.training_data import TrainingData
from prunegym.pruning.data import absolute, check_labels
from prunegym.pruning.evaluation.comparison import typical_image
from prunegym.pruning.evaluation.evaluate import evaluate
from prunegym.pruning.files.plain_data import write_json
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.machine_failures import written_to
from prunegym.pruning.metrics import predictions
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.installing import fit_input_statistics_
from prunegym.pruning.runtime.outcomes import input_outcomes, keep_budget_
from prunegym.pruning.runtime.per_input import find_per_input_policy
from prunegym.pruning.runtime.slicing import deployed
from prunegym.pruning.storage.compressed import LoadedNetwork, load_compressed, save_compressed
from prunegym.pruning.training.batch_norms import REESTIMATED, check_statistics, reestimate_
from prunegym.pruning.training.distributed import ProcessGroup, launched
from prunegym.pruning.training.finetuning import RunControl, finetune_, trained_parameters
from prunegym.pruning.training.loop import EpochRecord
from prunegym.scripts.building import (
    build_splits,
    build_task,
    compressed_folder,
    measured_on,
    usable_device,
)
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.finetune import DISTILLATION, LABELS, FinetuneConfig, parse
from prunegym.scripts.options.network import TaskConfig
from prunegym.scripts.options.parser import UsageError
from prunegym.scripts.run_folder import METRICS, begin_run, check_out, claimed, continue_run
from prunegym.scripts.tables import print_aside, show


def run(argv: Sequence[str]) -> None:
    """Run the verb, alone or as one of several processes that a launcher started."""
    config = parse(argv)
    source, out = compressed_folder(config.compressed), config.output.folder.resolve()
    place = source.resolve()
    if out == place or out in place.parents or place in out.parents:
        raise UsageError(f"{source} must stay as it is; give an --out elsewhere than {config.output.folder}")
    claim = claimed(config.output.folder)
    with launched(config.device) as processes, nullcontext() if processes.number else claim:
        _run(config, source, processes)


def _run(config: FinetuneConfig, source: Path, processes: ProcessGroup) -> None:
    loaded = load_compressed(source, network=config.model)
    trained_parameters(loaded.model, config.part)  # refused before the work begins
    check_statistics(loaded.model, config.training.batch_norms if config.training else REESTIMATED)
    spec = loaded.network
    name = config.model or loaded.manifest.network
    network = NetworkSource(name, config.weights, spec.input_shape, spec.mean, spec.std)
    task = config.task(network, data=loaded.manifest.data)
    # what the folder knows belongs to the run's configuration as if flags had said it
    flags = {**config.output.flags, "model": name, "data": task.data.spec}
    flags |= {"input_size": list(spec.input_shape), "mean": list(spec.mean), "std": list(spec.std)}
    config = replace(config, output=replace(config.output, flags=flags))
    check_out(config.output)
    known_weights = config.weights is not None or trains_itself(spec.name, task.data.spec)
    if config.learn == LABELS and not known_weights:
        splits = build_splits(task, task.data, spec)
        check_labels(splits, count_classes(loaded.model, spec))
        data = TrainingData.from_splits(splits, validate=config.validate)
    else:
        everything = Budget({"macs": 1.0})
        data = TrainingData.from_task(build_task(task, everything), validate=config.validate)
    device = usable_device(config.device)
    before = copy.deepcopy(loaded.model).to(device)
    share = None  # of the multiply-adds that inputs cost on average, where the network decides for each
    if find_per_input_policy(gates_of(before)) is not None:
        share = float(input_outcomes(before, data.validation).macs.mean())
    processes.wait()  # until all have seen what the folder held
    if not processes.number:
        begin_run(config.output)
    epochs = _finetune(loaded.model.to(device), data, config, processes)
    if processes.number:
        return
    continue_run(config.output)
    if share is not None:  # other features, other decisions
        images = data.validation
        wanted, _ = predictions(data.dense or before, images.batches())
        typical = images.take(torch.arange(len(images))).to(device)
        fit_input_statistics_(loaded.model, typical, wanted)
        keep_budget_(loaded.model, images, share)
    _write(config, task, loaded, {"before": before, "after": loaded.model}, data, epochs)


def _finetune(
    model: nn.Module, data: TrainingData, config: FinetuneConfig, processes: ProcessGroup
) -> tuple[EpochRecord, ...]:
    if config.training is None:
        reestimate_(model, data.images, processes)
        return ()
    out = config.output.folder
    with closing(Curves(out / "tensorboard")) as curves:
        return finetune_(
            model,
            data.images,
            config.training,
            teacher=data.dense if config.learn == DISTILLATION else None,
            validation=data.validation if config.validate else None,
            control=RunControl(
                processes,
                out / "checkpoint" / "state.safetensors",
                resume=config.output.resume,
                on_epoch=curves.write,
            ),
            progress=config.progress,
        )


def _write(
    config: FinetuneConfig,
    task: TaskConfig,
    loaded: LoadedNetwork,
    models: Mapping[str, nn.Module],
    data: TrainingData,
    epochs: tuple[EpochRecord, ...],
) -> None:
    out, shape, gated = config.output.folder, loaded.network.input_shape, len(loaded.gates)
    macs = dict.fromkeys(models, loaded.manifest.evaluation.macs)
    if data.dense is not None:
        models = {"dense": data.dense, **models}
        macs["dense"] = find_groups(data.dense, shape).macs
    # as they are deployed, in turn within one run
    fast = {name: deployed(model, shape) for name, model in models.items()}
    latencies = measure_latency(fast, typical_image(models.values(), data.test))
    rows = {
        name: replace(evaluate(model, data.test, macs=macs[name]), latency_ms=latencies[name])
        for name, model in models.items()
    }
    images = absolute(task.data.eval_data or task.data.spec)
    save_compressed(
        out / "compressed", loaded, replace(loaded.manifest, data=images, evaluation=rows["after"])
    )
    record = {
        "rows": {name: row.to_dict() for name, row in rows.items()},
        "gated_groups": {name: 0 if name == "dense" else gated for name in rows},
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    write_json(out / METRICS, record)
    title = f"{config.compressed} learns from {config.learn}, {measured_on(task)}"
    show(record, title, as_json=config.output.as_json)
    print_aside(f"written to {out}")


class Curves:
    """Learning curves in TensorBoard, one point per epoch; no file is written before the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, epoch: EpochRecord) -> None:
        """Add an epoch's loss, learning rate and, if it was measured, accuracy."""
        with written_to(self._folder):
            if self._writer is None:  # an interrupted run may have written this epoch, too
                self._writer = SummaryWriter(str(self._folder), purge_step=epoch.number)
            for name in ("loss", "learning_rate", "accuracy"):
                value = getattr(epoch, name)
                if value is not None:
                    self._writer.add_scalar(f"finetune/{name}", value, epoch.number)
            self._writer.flush()  # an epoch can take minutes, and TensorBoard reads the file

    def close(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()


if __name__ == "__main__":
    sys.exit(run_verb("finetune"))
