import numpy as np
import pytest

from agents.heatmap import MAP_WIDTH, TOP, colours, ratio_heatmap


def test_no_pruning_is_dark_blue_and_full_pruning_yellow():
    assert colours(np.array([0.0, 1.0])).tolist() == [[68, 1, 84], [253, 231, 37]]


def test_rows_are_groups_columns_are_episodes_static_left_runtime_right():
    ratios = np.zeros((2, 2, 2))
    ratios[1, 0, 0] = 1.0  # second episode, first group, static
    ratios[0, 1, 1] = 1.0  # first episode, second group, runtime
    picture = ratio_heatmap(["a", "b"], ratios)
    rows, columns = np.nonzero((picture[:, :-80] == [253, 231, 37]).all(axis=-1))  # -80: not the scale
    static = columns < columns.min() + MAP_WIDTH / 2
    assert static.sum() == (~static).sum() == 120 * MAP_WIDTH / 2
    assert rows[static].max() < TOP + 120 <= rows[~static].min()
    # the static cell ends where its map ends; the runtime cell starts one gap later
    assert columns[~static].min() - columns[static].max() == 17


@pytest.mark.parametrize(("groups", "episodes"), [(1, 1), (60, 400)])
def test_every_row_leaves_room_for_its_label(groups, episodes):
    names = [f"layer{index}.conv" for index in range(groups)]
    picture = ratio_heatmap(names, np.zeros((episodes, groups, 2)))
    assert picture.dtype == np.uint8
    assert picture.shape[0] - 76 >= 15 * groups


def test_the_same_ratio_has_the_same_colour_in_every_picture():
    low, high = (ratio_heatmap(["a"], np.array([[[0.3, peak]]])) for peak in (0.3, 0.9))
    assert low[TOP + 50, 100].tolist() == high[TOP + 50, 100].tolist()
