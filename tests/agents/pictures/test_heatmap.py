import numpy as np
import pytest

from prunegym.agents.pictures.heatmap import (
    BOTTOM,
    MAP_HEIGHT,
    MAP_WIDTH,
    MIN_ROW_HEIGHT,
    SCALE,
    TOP,
    colours,
    plans_heatmap,
)
from prunegym.agents.pictures.plan_table import compression


def ratios(static=0.0, runtime=0.0):
    return {"static_ratio": static, "runtime_ratio": runtime}


def test_a_site_where_a_technique_cannot_decide_is_grey_and_each_technique_has_a_map():
    plans = [{"a": {"static_ratio": 0.5, "depth": 1.0}, "b": {"static_ratio": 0.5}}]
    picture = plans_heatmap(["a", "b"], plans)
    assert len(picture) == 2 * (TOP + MAP_HEIGHT + BOTTOM)
    top, half = TOP + 10, len(picture) // 2
    assert picture[top, 100].tolist() == [253, 231, 37]  # the block that begins at a goes
    assert picture[half + top, 100].tolist() == [33, 145, 140]  # and half of its channels
    assert compression(["a", "b"], plans, "depth")[:, 0].tolist() == pytest.approx([1.0, np.nan], nan_ok=True)


def test_no_pruning_is_dark_blue_and_full_pruning_yellow():
    assert colours(np.array([0.0, 1.0])).tolist() == [[68, 1, 84], [253, 231, 37]]


def test_what_was_not_decided_has_no_colour_of_the_scale():
    ramp = colours(np.linspace(0.0, 1.0, 1001))
    grey = colours(np.array([np.nan]))
    assert np.abs(ramp.astype(int) - grey).sum(axis=-1).min() > 60


def test_rows_are_groups_columns_are_episodes_static_above_runtime():
    plans = [{"a": ratios(), "b": ratios(runtime=1.0)}, {"a": ratios(static=1.0), "b": ratios()}]
    picture = plans_heatmap(["a", "b"], plans)
    rows, columns = np.nonzero((picture[:, :-SCALE] == [253, 231, 37]).all(axis=-1))
    static = rows < len(picture) / 2
    cell = MAP_HEIGHT // 2 * MAP_WIDTH // 2
    assert static.sum() == (~static).sum() == cell
    # the static cell is the upper right one of its map, the runtime cell the lower left one of its own
    assert rows[static].min() == TOP
    assert rows[~static].max() == len(picture) - BOTTOM - 1
    assert columns[static].min() == columns[~static].max() + 1


@pytest.mark.parametrize(("groups", "episodes"), [(1, 1), (60, 400)])
def test_every_row_leaves_room_for_its_label(groups, episodes):
    names = [f"layer{index}.conv" for index in range(groups)]
    picture = plans_heatmap(names, [{name: ratios() for name in names}] * episodes)
    assert picture.dtype == np.uint8
    assert len(picture) / 2 - TOP - BOTTOM >= MIN_ROW_HEIGHT * groups


def test_the_same_ratio_has_the_same_colour_in_every_picture():
    low, high = (plans_heatmap(["a"], [{"a": ratios(0.3, peak)}]) for peak in (0.3, 0.9))
    assert low[TOP + 50, 100].tolist() == high[TOP + 50, 100].tolist()
