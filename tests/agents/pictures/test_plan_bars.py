import itertools

import numpy as np
import pytest

from prunegym.agents.pictures import plan_bars_figure
from prunegym.agents.pictures.canvas import figure_pixels


def plan(static, runtime=0.0, *, groups=("a", "b")):
    return {group: {"static_ratio": static, "runtime_ratio": runtime} for group in groups}


def bars(figure, label):
    found = next(each for each in figure.axes[0].containers if label in each.get_label())
    return [(bar.get_x(), bar.get_width()) for bar in found]


def test_static_and_runtime_add_up_to_what_does_not_run():
    figure = plan_bars_figure(["a", "b"], plan(0.5, 0.2), {"a": {"static_ratio": 0.6, "runtime_ratio": 0.5}})
    assert bars(figure, "uniform") == [(0, pytest.approx(0.6))] * 2
    assert bars(figure, "learned") == [(0, 0.6), (0, 0.0)]  # the group that is not named is left alone
    assert bars(figure, "skipped") == [(0.6, pytest.approx(0.2)), (0.0, 0.0)]


def test_without_gates_nothing_is_said_of_them():
    figure = plan_bars_figure(["a", "b"], plan(0.5), plan(0.4), name="cma-es")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["uniform", "cma-es: removed (static)"]


@pytest.mark.parametrize("count", [1, 9, 60])
def test_every_label_is_whole_and_clear_of_the_next(count):
    groups = [f"features.denseblock{n}.denselayer{n}.conv$1$" for n in range(count)]
    figure = plan_bars_figure(groups, plan(0.5, groups=groups), plan(0.4, 0.1, groups=groups))
    height, width, _ = figure_pixels(figure).shape
    labels = figure.axes[0].get_yticklabels()
    assert not any(label.get_parse_math() for label in labels)
    boxes = [label.get_window_extent() for label in labels]
    assert [label.get_text() for label in labels] == groups
    assert all(box.x0 >= 0 for box in boxes)
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= width
    assert legend.y1 <= height


def test_every_further_technique_has_a_panel_of_its_own():
    chosen = {"a": {"static_ratio": 0.2, "depth": 1.0}, "b": {"static_ratio": 0.2}}
    figure = plan_bars_figure(["a", "b"], plan(0.5), chosen)
    widths, depth = figure.axes
    assert depth.get_xlabel() == "depth"
    assert [bar.get_width() for bar in depth.containers[1]] == [1.0, 0.0]
    assert [bar.get_width() for bar in depth.containers[0]] == [0.0, 0.0]  # of the uniform plan
    assert depth.get_ylim() == widths.get_ylim()


def test_the_first_group_is_at_the_top():
    figure = plan_bars_figure(["a", "b"], plan(0.5), plan(0.4))
    low, high = figure.axes[0].get_ylim()
    assert low > high
    assert np.array_equal(figure.axes[0].get_yticks(), [0, 1])
