"""Images optimised until every BatchNorm sees the statistics that it saw in training."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from prunegym.pruning.calibration.statistics import CalibrationInputs
from prunegym.pruning.calibration.synthesis.records import SYNTHESES, can_synthesise, gaussian_images
from prunegym.pruning.files.cache import cache_folder, read_cached, write_cached
from prunegym.pruning.graph.tracing import BATCH_NORMS

BATCH_SIZE = 64
STEPS = 40
LEARNING_RATE = 0.1
ROLL_OFF = 1.5  # exponent of the start's amplitude by frequency; photographs have 1 to 1.5
COLOUR_MIX = 3  # the mean colour is added so many times to a start's colours, which then correlate by 0.83
MAX_PLACES_PER_AXIS = 8  # of a feature map, at which a step takes its statistics
MAX_SHIFT = 2  # pixels; the network sees the images moved and mirrored, as it saw those it was trained on
MIN_MISMATCH = 1e-3  # below it more steps gain nothing
VERSION = 1  # raise it when the images that come out change


@SYNTHESES.register("distilled")
def distilled(
    model: nn.Module, input_shape: Sequence[int], *, seed: int, progress: bool
) -> CalibrationInputs:
    """Optimise images until every BatchNorm sees its running statistics (Yin et al. 2020, without classes).

    Cached by the hash of the weights. Without BatchNorm, noise.
    """
    images = gaussian_images(input_shape, seed=seed)
    if can_synthesise(model):
        images = distilled_images(model, images, seed=seed, progress=progress)
    return CalibrationInputs(images.split(BATCH_SIZE), model)


def distilled_images(model: nn.Module, noise: Tensor, *, seed: int, progress: bool) -> Tensor:
    """Return images [N, C, H, W], once Gaussian noise, on which the BatchNorms see their running statistics.

    Each batch is cached when it is done, so that an interrupted run goes on where it was.
    """
    batches = smooth(noise).split(BATCH_SIZE)
    shown = progress and sys.stderr.isatty()
    with tqdm(
        total=STEPS * len(batches), desc="synthetic images", unit="step", disable=not shown, leave=False
    ) as bar:
        return torch.cat([_cached_batch(model, batch, bar, seed=seed + i) for i, batch in enumerate(batches)])


def smooth(noise: Tensor) -> Tensor:
    """Return white noise [N, C, ...] given the spectrum and colours of photographs, of variance 1.

    From such a start the statistics are met in far fewer steps (docs/decisions.md, D25).
    """
    dims = tuple(range(2, noise.dim()))
    if not dims:
        return noise
    mixed = noise + COLOUR_MIX * noise.mean(1, keepdim=True)
    square = torch.zeros(())  # of the frequency, in cycles a pixel
    for dim in dims:
        shape = [-1 if other == dim else 1 for other in range(noise.dim())]
        square = square + torch.fft.fftfreq(noise.size(dim)).square().view(shape)
    amplitude = (square + max(noise.shape[2:]) ** -2).pow(-ROLL_OFF / 2)
    smoothed = torch.fft.ifftn(torch.fft.fftn(mixed, dim=dims) * amplitude, dim=dims).real
    return smoothed / smoothed.std()


def _cached_batch(model: nn.Module, images: Tensor, bar: Any, *, seed: int) -> Tensor:
    path = cache_folder() / f"distilled-{_fingerprint(model, images, seed)}"
    if (content := read_cached(path)) is not None:
        return load(content)["images"]
    made = _match(model, images, bar, seed=seed)
    write_cached(path, save({"images": made}))
    return made


@torch.enable_grad()  # whatever the caller is doing
def _match(model: nn.Module, images: Tensor, bar: Any, *, seed: int) -> Tensor:
    """Return one batch after at most STEPS steps of Adam, fewer if the mismatch is small before."""
    generator = torch.Generator().manual_seed(seed)
    start = images
    images = images.to(next(model.parameters()).device).clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with _mismatches(model, generator) as (frozen, mismatches):
        for _ in range(STEPS):
            mismatches.clear()
            # shifted and, half of the time, mirrored, as training images are
            down, right = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (2,), generator=generator).tolist()
            moved = images.roll((down, right), dims=(-2, -1))
            frozen(moved.flip(-1) if torch.rand((), generator=generator) < 0.5 else moved)
            mismatch = torch.stack(mismatches).mean()
            bar.update()
            bar.set_postfix(mismatch=f"{float(mismatch.detach()):.3f}")
            if mismatch < MIN_MISMATCH:
                break
            optimizer.zero_grad()
            mismatch.backward()
            optimizer.step()
            schedule.step()
    images = images.detach()  # a pixel that diverged would spoil every moment: it stays as it began
    return torch.where(images.isfinite(), images, start.to(images.device)).cpu()


@contextmanager
def _mismatches(model: nn.Module, generator: torch.Generator) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """Yield a frozen copy, and the list that each of its runs fills with one mismatch per BatchNorm."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    mismatches: list[Tensor] = []

    def compare(module: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        places = []
        for size in x.shape[2:]:  # a grid of about MAX_PLACES_PER_AXIS of its places, elsewhere at each call
            step = max(1, size // MAX_PLACES_PER_AXIS)
            places.append(slice(int(torch.randint(step, (), generator=generator)), None, step))
        few = x[tuple([slice(None), slice(None), *places])]
        few = few[:, :, None].flatten(2)  # [batch, channels, places], also where there is but one place
        # by way of the mean square: the variance operator takes six times as long
        mean, square = (part.mean(2).mean(0) for part in (few, few.square()))
        variance = (square - mean.square()).clamp_min(0)
        expected = module.running_var + module.eps
        off_mean = (mean - module.running_mean).square() / expected
        off_scale = (0.5 * torch.log((variance + module.eps) / expected)).square()
        mismatches.append((off_mean + off_scale).mean())

    for module in frozen.modules():
        if isinstance(module, BATCH_NORMS) and module.track_running_stats:
            module.register_forward_pre_hook(compare)
    yield frozen, mismatches


def _fingerprint(model: nn.Module, images: Tensor, seed: int) -> str:
    """Return a hash of everything that decides the images."""
    optimisation = (VERSION, STEPS, LEARNING_RATE, MAX_PLACES_PER_AXIS, MAX_SHIFT, MIN_MISMATCH)
    settings = (optimisation, seed, tuple(images.shape))
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(images.contiguous().numpy().tobytes())  # the noise to begin with
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
