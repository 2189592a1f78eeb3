"""Heat maps of plans by site and episode, drawn with Pillow, which TensorBoard requires."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prunegym.agents.pictures.plan_table import compression
from prunegym.envs.results import PlainPlan
from prunegym.pruning.errors import printable
from prunegym.pruning.techniques import TECHNIQUES, techniques_of

FONT = ImageFont.load_default(size=14)
MIN_ROW_HEIGHT = 17  # pixels, so that labels of the font's size do not overlap
# size of one map in pixels; narrow, as TensorBoard's cards are; with many groups it is taller
MAP_WIDTH, MAP_HEIGHT = 360, 170
GAP, TOP, BOTTOM, SCALE = 16, 32, 48, 70  # pixels between maps, above, below, and for the colour bar
# viridis at 0, 1/4, ... 1: equal steps of the ratio look like equal steps of colour, also in grey
COLOURS = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)
UNDECIDED = (217, 217, 217)  # light grey, which is not a colour of the scale


def plans_heatmap(sites: Sequence[str], plans: Sequence[PlainPlan]) -> NDArray[np.uint8]:
    """Draw a heat map for each technique, static ratios above runtime ratios, on a scale fixed to [0, 1].

    Args:
        sites: names of the sites, the labels of the rows.
        plans: those of one or more episodes. A site that an episode did not decide about is grey.

    Returns:
        The picture, [height, width, 3].
    """
    names = list(reversed(techniques_of(*plans)))
    row_height = max(MIN_ROW_HEIGHT, MAP_HEIGHT // len(sites))
    height = row_height * len(sites)
    labels = [printable(site) for site in sites]
    left = math.ceil(max(map(FONT.getlength, labels))) + GAP
    size = (left + MAP_WIDTH + GAP + SCALE, len(names) * (TOP + height + BOTTOM))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for index, name in enumerate(names):
        title = TECHNIQUES[name].key.replace("_", " ")
        top = TOP + index * (TOP + height + BOTTOM)
        for row, label in enumerate(labels):
            draw.text((left - 6, top + (row + 0.5) * row_height), label, "black", FONT, anchor="rm")
        cells = Image.fromarray(colours(compression(sites, plans, name)))
        canvas.paste(cells.resize((MAP_WIDTH, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left + MAP_WIDTH / 2, top - TOP / 2), title, "black", FONT, anchor="mm")
        _draw_episode_axis_(draw, left, top + height, episodes=len(plans))
        _draw_scale_(canvas, draw, left + MAP_WIDTH + GAP, top, height)
    return np.asarray(canvas)


def colours(ratios: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the colours of ratios in [0, 1], grey for NaN: [..., 3] for ratios [...]."""
    anchors = np.linspace(0.0, 1.0, len(COLOURS))
    channels = [np.interp(ratios, anchors, COLOURS[:, channel]) for channel in range(3)]
    pixels = np.stack(channels, axis=-1)
    pixels[np.isnan(ratios)] = UNDECIDED
    return pixels.round().astype(np.uint8)


def _draw_episode_axis_(draw: ImageDraw.ImageDraw, left: float, top: float, *, episodes: int) -> None:
    """Draw the x axis of a map below it, with at most six ticks."""
    step = next(
        step for step in (n * 10**power for power in range(9) for n in (1, 2, 5)) if episodes / step <= 6
    )
    for episode in range(step, episodes + 1, step):
        x = left + (episode - 0.5) / episodes * MAP_WIDTH
        draw.line((x, top, x, top + 4), "black")
        draw.text((x, top + 6), str(episode), "black", FONT, anchor="mt")
    draw.text((left + MAP_WIDTH / 2, top + 26), "episode", "black", FONT, anchor="mt")


def _draw_scale_(canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, height: int) -> None:
    """Draw the colour bar with its labels."""
    ramp = np.linspace(1.0, 0.0, height)[:, None].repeat(14, axis=1)
    canvas.paste(Image.fromarray(colours(ramp)), (left, top))
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        draw.text((left + 18, top + (1.0 - value) * height), f"{value:.2f}", "black", FONT, anchor="lm")
    draw.text((left + SCALE - GAP, top + height + 26), "share pruned", "black", FONT, anchor="rt")
