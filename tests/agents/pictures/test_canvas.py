import io

import numpy as np
import pytest
from PIL import Image

from prunegym.agents.pictures.canvas import DPI, figure_pixels, in_percent, limits, new_axes, png, styles


def test_the_pixels_are_those_of_the_figure():
    figure, axes = new_axes(2.0, 1.0)
    empty = figure_pixels(figure)
    assert empty.shape == (DPI, 2 * DPI, 3)
    assert empty.dtype == np.uint8
    assert (empty == 255).mean() > 0.5
    axes.axhspan(0.0, 1.0, color="#102030")
    assert (figure_pixels(figure) == [0x10, 0x20, 0x30]).all(-1).mean() > 0.2


def test_a_png_file_holds_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_a_few_far_values_do_not_widen_the_limits():
    low, high = limits([*np.linspace(0.78, 0.82, 50), 0.1, 0.12], inside=[], min_span=0.01)
    assert 0.7 < low < 0.78
    assert 0.82 < high < 0.9


def test_what_must_be_inside_is_inside():
    low, high = limits([*np.linspace(0.78, 0.82, 50), 0.1], inside=[0.2, 0.95], min_span=0.01)
    assert 0.1 < low < 0.2
    assert high > 0.95


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.501]])
def test_equal_values_get_the_least_span_around_them(values):
    low, high = limits(values, inside=[], min_span=0.02)
    assert high - low == pytest.approx(0.02)
    assert low < 0.5 < high


def test_makers_differ_in_style_and_baselines_always_look_alike():
    found = styles(["random", "ppo", "random", "cma-es", "uniform"])
    assert list(found) == ["random", "ppo", "cma-es", "uniform"]
    assert len(set(found.values())) == 4
    assert found["random"] == styles(["td3", "random"])["random"]
    assert found["ppo"] == styles(["ppo"])["ppo"]


def test_ticks_say_percent_with_the_digits_that_tell_them_apart():
    figure, axes = new_axes(4.0, 1.0)
    axes.set_xticks([0.49875, 0.499, 0.49925, 0.5])
    in_percent(axes.xaxis)
    figure_pixels(figure)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["49.875%", "49.9%", "49.925%", "50%"]
