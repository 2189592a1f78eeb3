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
    ratio_heatmap,
)


def test_no_pruning_is_dark_blue_and_full_pruning_yellow():
    assert colours(np.array([0.0, 1.0])).tolist() == [[68, 1, 84], [253, 231, 37]]


def test_what_was_not_decided_has_no_colour_of_the_scale():
    ramp = colours(np.linspace(0.0, 1.0, 1001))
    grey = colours(np.array([np.nan]))
    assert np.abs(ramp.astype(int) - grey).sum(axis=-1).min() > 60


def test_rows_are_groups_columns_are_episodes_static_above_runtime():
    ratios = np.zeros((2, 2, 2))
    ratios[1, 0, 0] = 1.0  # second episode, first group, static
    ratios[0, 1, 1] = 1.0  # first episode, second group, runtime
    picture = ratio_heatmap(["a", "b"], ratios)
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
    picture = ratio_heatmap(names, np.zeros((episodes, groups, 2)))
    assert picture.dtype == np.uint8
    assert len(picture) / 2 - TOP - BOTTOM >= MIN_ROW_HEIGHT * groups


def test_the_same_ratio_has_the_same_colour_in_every_picture():
    low, high = (ratio_heatmap(["a"], np.array([[[0.3, peak]]])) for peak in (0.3, 0.9))
    assert low[TOP + 50, 100].tolist() == high[TOP + 50, 100].tolist()
