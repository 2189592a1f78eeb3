"""Export networks to files for other runtimes, ONNX and torch.export, and compare these with the network."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.errors import ExportError, message_of
from prunegym.pruning.files.writing import written_whole
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.modes import evaluating
from prunegym.pruning.optional_packages import imported
from prunegym.pruning.registry import Registry
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.slicing import fused
from prunegym.pruning.techniques import TECHNIQUES

OPSET = 20  # of ONNX; onnxruntime 1.17, of early 2024, and later understand it
TOLERANCE = 1e-3  # of the largest logit: how far an image's logits may be off
MAX_DIFFERING_SHARE = 0.05  # of images; with gates only, where rounding can turn a choice between equals
N_SINGLE_IMAGES = 4  # images that are compared at batch 1; the others are one batch
METADATA = "prunegym"  # entry of a file's metadata, JSON

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A kind of file, by its ending."""

    write: Callable[[torch.export.ExportedProgram, Path, Metadata, int], None]  # the last: ONNX opset
    open: Callable[[Path], nn.Module]  # from a batch of images to the network's output


FORMATS: Registry[Format] = Registry("format")


@dataclass(frozen=True)
class Comparison:
    """Difference between the outputs of a file and of the network it was made from."""

    images: int
    difference: float  # largest, of any logit
    agreement: float  # share of images with the same largest logit
    differing: float  # share of images that are off by more than TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)


def export_network(
    model: nn.Module, paths: Mapping[str, Path], images: Tensor, *, metadata: Metadata, opset: int = OPSET
) -> dict[str, Comparison]:
    """Write a network to files that take any number of images, and compare each with the network.

    BatchNorms are fused. Gates become masks: the files give the same for every image of a batch, and compute
    the skipped units as well.

    Args:
        model: a network, gated or not, on the CPU.
        paths: name among FORMATS -> file to write; no file appears unless all agree with the network.
        images: images to compare on, [N, ...], two or more; N_SINGLE_IMAGES of them are run one by one.
        metadata: plain data to write into the files.
        opset: the version of ONNX's operators.

    Raises:
        ExportError: the network cannot be exported, or what was written does not compute the same.
        PruningError: a package is missing.
        UnknownNameError: there is no such format.
    """
    formats = {name: FORMATS[name] for name in paths}
    program, notes = to_program(model, images.shape[1:])
    metadata = {**metadata, **notes}
    compared = {}
    with ExitStack() as files:
        for name, path in paths.items():
            temporary = files.enter_context(written_whole(path))
            formats[name].write(program, temporary, metadata, opset)
            compared[name] = compare(model, formats[name].open(temporary), images)
            result = compared[name]
            if result.differing > (0 if gates_of(model) is None else MAX_DIFFERING_SHARE):
                raise ExportError(
                    f"{path.name} disagrees with the network on {result.differing:.1%} of {result.images} "
                    f"images, by up to {result.difference:.2g} in a logit "
                    f"(allowed: {TOLERANCE:g} of the largest); not written"
                )
    return compared


@torch.inference_mode()
def compare(model: nn.Module, other: nn.Module, images: Tensor) -> Comparison:
    """Compare two networks' logits on images, [N, ...], the first few of them one by one."""
    batches = [*images[:N_SINGLE_IMAGES].split(1), images[N_SINGLE_IMAGES:]]
    with evaluating(model):
        expected = torch.cat([model(batch) for batch in batches if len(batch)]).flatten(1)
    logits = torch.cat([other(batch) for batch in batches if len(batch)]).flatten(1)
    off = (logits - expected).abs().amax(1)
    # not `off > allowed`: a NaN is off as well
    wrong = ~(off <= TOLERANCE * expected.abs().max())
    return Comparison(
        images=len(images),
        difference=float(off.max()),
        agreement=float((logits.argmax(1) == expected.argmax(1)).float().mean()),
        differing=float(wrong.float().mean()),
    )


@torch.no_grad()
def to_program(
    model: nn.Module, input_shape: Sequence[int]
) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    """Return a network as a program of torch's operators, for any number of images, and notes about it.

    BatchNorms are fused, and every technique prepares what it left in the network: gates become masks.

    Raises:
        ExportError: the network cannot be exported.
    """
    network, _ = fused(model, input_shape)
    notes: dict[str, Any] = {}
    for kind in sorted(TECHNIQUES.values(), key=lambda kind: kind.stage):
        notes |= kind.to_export_(network, model)
    batch = {0: torch.export.Dim("batch", min=1)}
    example = torch.zeros(2, *input_shape)  # kept in a pt2 file, so none of the user's
    with _quiet(f"{type(model).__name__} cannot be exported for any number of images"):
        program = torch.export.export(network, (example,), dynamic_shapes=(batch,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on this machine, and half of the file
    return program, notes


@contextmanager
def _quiet(failure: str) -> Iterator[None]:
    """Silence torch's exporters; whatever they raise becomes an ExportError that begins with `failure`.

    They warn of their own deprecated calls, and of gates that remember the images in flight, which no one
    reads from a file. What they write is compared with the network all the same.
    """
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels, sink = [logger.level for logger in loggers], io.StringIO()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # they raise a dozen kinds, by where they fail
        raise_machine_failure(error)
        cause = error
        while isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        # after the first line come the exporter's graphs and stack traces
        first_line = next(iter(message_of(cause).strip().splitlines()), type(cause).__name__)
        raise ExportError(f"{failure}: {first_line}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: Metadata, opset: int) -> None:
    for package in ("onnx", "onnxscript"):
        _extra(package)
    with _quiet(f"the network cannot be written as ONNX of opset {opset}"):
        written = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], opset_version=opset, verbose=False
        )
        assert written is not None  # it is where no file is named
        actual = written.model.opset_imports[""]
        if actual != opset:
            raise ValueError(f"the exporter gives opset {actual}")
        for node in written.model.graph.all_nodes():
            node.metadata_props.clear()  # where in torch's program it comes from
        written.model.metadata_props[METADATA] = json.dumps(metadata)
        written.save(path, external_data=False)


def _write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: Metadata, opset: int) -> None:
    with _quiet("the network cannot be written by torch.export"):
        buffer = io.BytesIO()  # a path would have to end in .pt2
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
        path.write_bytes(buffer.getvalue())


def _open_pt2(path: Path) -> nn.Module:
    with _quiet(f"{path.name} cannot be read back"):
        return torch.export.load(io.BytesIO(path.read_bytes())).module()


class _InferenceSession(nn.Module):
    """An ONNX file, run by onnxruntime on the CPU with as many threads as torch uses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        runtime = _extra("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        with _quiet(f"onnxruntime cannot read {path.name}"):
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, [N, classes], of images [N, ...]."""
        (logits,) = self._session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)


def _extra(package: str) -> Any:
    return imported(package, extra="export", purpose="ONNX files")


FORMATS.register("onnx")(Format(_write_onnx, _InferenceSession))
FORMATS.register("pt2")(Format(_write_pt2, _open_pt2))
