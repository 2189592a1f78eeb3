from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from prunegym.agents.pictures import front, pareto_figure
from prunegym.agents.pictures.canvas import figure_pixels, styles
from prunegym.agents.pictures.pareto import PLAN, spread


def dominated(point, points):
    return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_point_dominates(seed):
    rng = np.random.default_rng(seed)
    points = [(int(macs), int(score)) for macs, score in rng.integers(0, 12, (40, 2))]  # many ties
    found = front(points)
    assert set(found) == {index for index, point in enumerate(points) if not dominated(point, points)}
    assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)


def test_the_front_of_one_point_is_that_point():
    assert front([(0.5, 0.1)]) == [0]
    assert front([]) == []


def plans(figure):
    """What draws the plans, beside the rings of the front and the stars of the marks."""
    return [dots for dots in figure.axes[0].collections if set(dots.get_sizes()) == {PLAN}]


def texts(figure):
    figure_pixels(figure)
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legends + [text.get_text() for text in figure.axes[0].texts]


def test_every_plan_is_drawn_in_the_colour_of_its_maker(episode):
    episodes = [episode(0.5 + n / 100, 0.5 + n / 100, by=("random", "ppo", "td3")[n % 3]) for n in range(12)]
    figure = pareto_figure(episodes)
    drawn = {}
    for dots in plans(figure):
        if len(dots.get_facecolors()):
            drawn.setdefault(to_hex(dots.get_facecolors()[0]).upper(), []).extend(dots.get_offsets().tolist())
    expected = styles(["random", "ppo", "td3"])
    for maker in expected:
        mine = [[one.result.shares["macs"], one.result.accuracy] for one in episodes if one.by == maker]
        assert drawn[expected[maker].colour] == mine
    assert {"by ppo", "by td3", "by random", "best front"} <= set(texts(figure))
    legend = {line.get_label(): line.get_color() for line in figure.legends[0].get_lines()}
    assert all(legend[f"by {maker}"] == style.colour for maker, style in expected.items())


def test_the_front_is_joined(episode):
    figure = pareto_figure([episode(0.8, 0.5), episode(0.7, 0.4), episode(0.6, 0.45)])
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0.4, 0.7], [0.5, 0.8]]
    assert line.get_drawstyle() == "steps-post"  # up to the next plan no more is known to be reached


def test_a_few_terrible_plans_do_not_squeeze_the_others_and_are_counted(episode):
    good = [episode(0.78 + n / 2000, 0.5) for n in range(80)]
    figure = pareto_figure([*good, episode(0.1, 0.5), episode(0.12, 0.5), episode(0.11, 0.5)])
    low, high = figure.axes[0].get_ylim()
    assert low > 0.7
    assert high > 0.8195
    assert "3 of the plans" in figure.axes[0].get_xlabel()
    hollow = [dots for dots in plans(figure) if not len(dots.get_facecolors())]
    assert sum(len(dots.get_offsets()) for dots in hollow) == 3
    assert all(dots.get_offsets()[:, 1].min() >= low for dots in hollow if len(dots.get_offsets()))


def test_at_one_budget_the_plans_spread_over_the_width(episode):
    macs = np.linspace(0.4985, 0.5, 30)
    low, high = pareto_figure([episode(0.8, share) for share in macs]).axes[0].get_xlim()
    assert low < macs[0] < macs[-1] < high
    assert np.ptp(macs) > 0.6 * (high - low)


def test_marks_are_named_with_their_score_and_inside(episode):
    marked = {"learned": (0.5, 0.91), "uni$x$form$": (0.5, 0.4)}
    figure = pareto_figure([episode(0.8 + n / 100) for n in range(9)], marked, 0.93)
    assert {"learned 91.0%", "uni$x$form$ 40.0%", "dense 93.0%"} <= set(texts(figure))
    low, high = figure.axes[0].get_ylim()
    assert low < 0.4 < 0.93 < high


def test_a_dense_network_far_above_is_named_and_not_drawn(episode):
    figure = pareto_figure([episode(0.3 + n / 1000) for n in range(9)], {}, 0.93)
    assert figure.axes[0].get_ylim()[1] < 0.5
    assert "dense 93.0%, above" in texts(figure)


def test_names_are_no_formulas(episode):
    figure = pareto_figure([episode()], {"$x$": (0.5, 0.5)})
    assert not figure.axes[0].texts[0].get_parse_math()


def test_estimates_are_faint_and_never_on_the_front(episode):
    evaluated = [episode(0.5 + n / 100, 0.5 + n / 100) for n in range(5)]
    figure = pareto_figure([*evaluated, episode(0.9, 0.4, estimated=True)])
    assert "1 of the plans are estimated" in figure.axes[0].get_xlabel()
    assert max(max(line.get_ydata()) for line in figure.axes[0].lines) == pytest.approx(0.54)
    alphas = np.concatenate([dots.get_edgecolors()[:, 3] for dots in plans(figure)])
    points = np.concatenate([dots.get_offsets() for dots in plans(figure)])
    assert (alphas < 0.5).sum() == 1
    assert points[alphas < 0.5][0][0] <= 0.5


def test_estimates_alone_have_no_front(episode):
    figure = pareto_figure([episode(0.9, 0.4, estimated=True), episode(0.8, estimated=True)])
    assert not any(len(line.get_xdata()) for line in figure.axes[0].lines)


def test_labels_of_marks_do_not_overlap(episode):
    marked = {f"row{n}": (0.5, 0.8 + n / 10_000) for n in range(5)}
    figure = pareto_figure([episode(0.5), episode(0.9)], marked)
    figure_pixels(figure)
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 5
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))


def test_without_labels_the_height_is_the_reward(episode):
    figure = pareto_figure([episode(0.8, labelled=False)], {"learned": (0.5, 0.55)})
    assert figure.axes[0].get_ylabel() == "reward"
    assert "learned 0.550" in texts(figure)


def test_heights_are_moved_apart_only_where_they_are_too_near():
    assert spread([0.1, 0.5, 0.9], min_gap=0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], min_gap=0.1) == pytest.approx([0.45, 0.55])
    assert min(np.diff(spread([0.1, 0.11, 0.12, 0.13, 0.9], min_gap=0.05))) >= 0.05 - 1e-12


def test_each_of_several_networks_has_its_own_colour_and_front(episode):
    small, large = ({f"{name}/conv": (0.5, 0.0)} for name in ("resnet20", "a/resnet32"))
    evaluated = [(0.8, 0.5, small), (0.7, 0.4, small), (0.95, 0.41, large), (0.9, 0.39, large)]
    figure = pareto_figure([episode(score, macs, plan=plan) for score, macs, plan in evaluated])
    fronts = sorted(line.get_xydata().tolist() for line in figure.axes[0].lines)
    assert fronts == [[[0.39, 0.9], [0.41, 0.95]], [[0.4, 0.7], [0.5, 0.8]]]
    assert {"by ppo, resnet20", "by ppo, a/resnet32"} <= set(texts(figure))


def test_within_a_range_of_budgets_no_plan_is_far_out(episode):
    tight = [episode(0.2 + n / 100, 0.3) for n in range(5)]
    figure = pareto_figure([*tight, *(episode(0.97 + n / 3000, 0.4 + n / 80) for n in range(40))])
    low, _ = figure.axes[0].get_ylim()
    assert low < 0.2
    assert figure.axes[0].lines[0].get_xydata()[0].tolist() == pytest.approx([0.3, 0.24])
