"""Networks by name: the embedded ones, torchvision's, timm's, and a user's own file."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunegym.pruning.errors import PruningError, UnknownNameError
from prunegym.pruning.networks.mobilenet import MobileNetV2
from prunegym.pruning.networks.resnets import PaddedShortcut, ProjectedShortcut, ResNet
from prunegym.pruning.networks.vgg import VGG
from prunegym.pruning.optional_packages import imported
from prunegym.pruning.registry import Registry, unknown_name
from prunegym.pruning.user_functions import named_function, running_users_code

Shape = tuple[int, int, int]
logger = logging.getLogger(__name__)

_LARGEST_MEAN, _LARGEST_STD = 1e6, 1e6  # far beyond any normalisation; images stay finite in float32
MAX_IMAGE_NUMBERS = 2**24  # of one image, channels times height times width


@dataclass(frozen=True)
class NetworkSpec:
    """A network's constructor, and the shape and normalisation of its input."""

    name: str
    build: Callable[[], nn.Module]  # weights drawn anew from torch's global generator at each call
    input_shape: Shape  # channels, height, width
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    # from a file's image to a normalised tensor, as the weights were evaluated; None: a generic one will do
    transform: Callable[[Image], Tensor] | None = None

    def __post_init__(self) -> None:
        whole = all(type(size) is int and size > 0 for size in self.input_shape)
        if len(self.input_shape) != 3 or not whole:
            raise PruningError(
                f"network {self.name!r}: the input size must be three positive numbers, "
                f"channels, height and width; got {tuple(self.input_shape)}"
            )
        if math.prod(self.input_shape) > MAX_IMAGE_NUMBERS:
            raise PruningError(
                f"network {self.name!r}: an image must hold at most {MAX_IMAGE_NUMBERS} numbers; "
                f"give a smaller input size than {tuple(self.input_shape)}"
            )
        channels = self.input_shape[0]
        if not len(self.mean) == len(self.std) == channels:
            raise PruningError(
                f"network {self.name!r}: mean and std need one number per input channel ({channels}), "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if bool in map(type, (*self.mean, *self.std)):
            raise PruningError(
                f"network {self.name!r}: mean and std are numbers, got {self.mean}, {self.std}"
            )
        # a NaN fails every comparison
        if not all(abs(value) <= _LARGEST_MEAN for value in self.mean):
            raise PruningError(
                f"network {self.name!r}: a mean, of pixels in [0, 1], must lie within "
                f"{_LARGEST_MEAN:g} of 0, got {self.mean}"
            )
        if not all(1 / _LARGEST_STD <= value <= _LARGEST_STD for value in self.std):
            raise PruningError(
                f"network {self.name!r}: a standard deviation must lie in "
                f"[{1 / _LARGEST_STD:g}, {_LARGEST_STD:g}], got {self.std}"
            )


NETWORKS: Registry[Callable[[], NetworkSpec]] = Registry("network")


def _for_cifar(name: str, build: Callable[[], nn.Module]) -> None:
    spec = NetworkSpec(name, build, (3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    NETWORKS.register(name)(lambda: spec)


for _depth in (20, 32, 44, 56, 110):
    _blocks = (_depth - 2) // 6  # two convolutions a block, three stages, and the stem and linear layer
    _for_cifar(f"cifar_resnet{_depth}", partial(ResNet, 3, (16, 32, 64), _blocks, shortcut=PaddedShortcut))
_for_cifar("cifar_vgg16_bn", VGG)
_for_cifar("cifar_mobilenetv2", MobileNetV2)


@NETWORKS.register("digits_resnet")
def digits_resnet() -> NetworkSpec:
    """Return the embedded default: scikit-learn's 8x8 digits, nine channel groups."""
    return NetworkSpec(
        name="digits_resnet",
        build=partial(ResNet, 1, (16, 24, 40), 2, shortcut=ProjectedShortcut),
        input_shape=(1, 8, 8),
        mean=(0.3053,),
        std=(0.3760,),
    )


def resolve_network(
    spec: str,
    *,
    input_size: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> NetworkSpec:
    """Return the network that `spec` names; the other arguments replace its own preprocessing.

    If they differ from it, its transform of image files is replaced as well, by a generic one.

    Args:
        spec: a registered name, `torchvision/NAME`, `timm/NAME`, or `file.py:factory`, where `factory` is a
            callable without arguments that returns the module.
        input_size: channels, height, width; needed for `file.py:factory`.
        mean: means of pixels in [0, 1], one per channel; for `file.py:factory` 0 by default.
        std: standard deviations, likewise; for `file.py:factory` 1 by default.

    Raises:
        UnknownNameError: no such name.
        PruningError: a package or file is missing, the file does not work, or a size or mean makes no sense.

    Example:
        >>> resolve_network("cifar_resnet20").input_shape
        (3, 32, 32)
    """
    kind, _, name = spec.partition("/")
    if ".py:" in spec:
        network = _from_file(spec, input_size)
    elif kind in _ZOOS and name:
        network = _ZOOS[kind](name)
    elif spec in NETWORKS:
        network = NETWORKS[spec]()
    else:
        raise unknown_name("network", spec, [*NETWORKS, *(f"{zoo}/NAME" for zoo in _ZOOS), "file.py:factory"])
    wanted = replace(
        network,
        input_shape=input_size or network.input_shape,
        mean=tuple(network.mean if mean is None else mean),
        std=tuple(network.std if std is None else std),
    )
    own = (network.input_shape, network.mean, network.std)
    return wanted if (wanted.input_shape, wanted.mean, wanted.std) == own else replace(wanted, transform=None)


_zoo = partial(imported, extra="zoo", purpose="networks by a zoo's name")


def _from_torchvision(name: str) -> NetworkSpec:
    models = _zoo("torchvision.models")
    known = models.list_models(module=models)  # the classifiers; detectors and the like live in submodules
    if name not in known:
        raise _unknown_in_zoo("torchvision", name, known)
    preprocessing = models.get_model_weights(name).DEFAULT.transforms()
    side = preprocessing.crop_size[0]
    return NetworkSpec(
        name=f"torchvision/{name}",
        build=partial(models.get_model, name, weights=None),
        input_shape=(3, side, side),
        mean=tuple(preprocessing.mean),
        std=tuple(preprocessing.std),
        transform=preprocessing,
    )


def _from_timm(name: str) -> NetworkSpec:
    timm = _zoo("timm")
    if not timm.is_model(name):
        raise _unknown_in_zoo("timm", name, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part after the dot names no known weights
        raise _unknown_in_zoo("timm", name, timm.list_pretrained(f"{name.partition('.')[0]}.*")) from error
    preprocessing = _zoo("timm.data")
    data = preprocessing.resolve_data_config(pretrained_cfg=config.to_dict())
    return NetworkSpec(
        name=f"timm/{name}",
        build=partial(timm.create_model, name, pretrained=False),
        input_shape=tuple(data["input_size"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        transform=preprocessing.create_transform(**data),
    )


_ZOOS: dict[str, Callable[[str], NetworkSpec]] = {"torchvision": _from_torchvision, "timm": _from_timm}


def _unknown_in_zoo(zoo: str, name: str, known: Sequence[str]) -> UnknownNameError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UnknownNameError(f"{zoo} has no image classifier named {name!r}.{hint}")


def _from_file(spec: str, input_size: Shape | None) -> NetworkSpec:
    if input_size is None:
        raise PruningError(
            f"{spec!r}: a network from a file needs its input size: channels, height and width"
        )
    return NetworkSpec(
        name=spec,
        build=partial(_built, spec, named_function(spec)),
        input_shape=input_size,
        mean=(0.0,) * input_size[0],
        std=(1.0,) * input_size[0],
    )


def _built(spec: str, factory: Callable[[], object]) -> nn.Module:
    with running_users_code(lambda cause: PruningError(f"{spec}: the factory raised {cause}")):
        model = factory()
    if not isinstance(model, nn.Module):
        raise PruningError(f"{spec}: the factory must return a torch.nn.Module, got {type(model).__name__}")
    model = _unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise PruningError(f"{spec}: the network is TorchScript; return the module that it was made from")
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise PruningError(f"{spec}: the size of {name} is not known yet; give the layer its sizes")
        if tensor.is_meta:
            raise PruningError(
                f"{spec}: {name} is on the meta device and has no values; build the network on the CPU"
            )
    if not any(True for _ in model.parameters()):
        raise PruningError(f"{spec}: {type(model).__name__} has no parameters, so nothing can be compressed")
    if {torch.float16, torch.bfloat16} & {tensor.dtype for tensor in tensors.values()}:
        logger.warning("%s is in half precision; it is worked with in float32", spec)
        model.float()
    _thaw_(model)
    return model


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module within what torch.compile and wrappers for several GPUs return."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    inner = getattr(model, "_orig_mod", model)
    return model if inner is model else _unwrapped(inner)


def _thaw_(model: nn.Module) -> None:
    """Replace tensors that were made under inference_mode, and can be neither changed nor trained."""
    for module in model.modules():
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in own:
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    copy = tensor.clone()
                    tensors[name] = nn.Parameter(copy) if isinstance(tensor, nn.Parameter) else copy
