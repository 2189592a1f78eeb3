import pytest

from prunegym.agents.pictures import reward_curve_figure

REWARDS = {"ppo": [0.3, 0.1, 0.5, 0.4], "random": [0.2, 0.45, 0.1]}


@pytest.fixture
def figure(episode):
    mixed = [episode(one + 0.25, by=by) for by, mine in REWARDS.items() for one in mine]
    return reward_curve_figure([episode(0.6, by="uniform"), *mixed])


@pytest.mark.parametrize("maker", list(REWARDS))
def test_the_line_is_the_best_of_the_makers_own_plans_so_far(figure, maker):
    line = next(line for line in figure.axes[0].lines if line.get_label() == maker)
    best = [max(REWARDS[maker][: count + 1]) for count in range(len(REWARDS[maker]))]
    assert line.get_ydata() == pytest.approx(best)
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata().tolist() == list(range(1, len(best) + 1))


def test_a_single_plan_is_a_level_over_the_whole_width(figure):
    line = next(line for line in figure.axes[0].lines if line.get_label() == "uniform")
    assert line.get_ydata() == pytest.approx([0.35, 0.35])


def test_an_estimate_is_an_evaluation_but_never_the_best(episode):
    plans = [episode(0.9, estimated=True), episode(0.5), episode(0.9, estimated=True), episode(0.7)]
    line = reward_curve_figure(plans).axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata().tolist() == pytest.approx([-float("inf"), 0.25, 0.25, 0.45])


def test_estimates_alone_have_no_best(episode):
    axes = reward_curve_figure([episode(0.9, estimated=True), episode(0.5, estimated=True)]).axes[0]
    assert axes.get_ylim()[1] > 0.65


def test_terrible_plans_do_not_squeeze_the_curve(episode):
    axes = reward_curve_figure([*(episode(0.9 + n / 1000) for n in range(40)), episode(-5.0)]).axes[0]
    edge = axes.get_ylim()[0]
    assert edge > 0.5
    assert axes.collections[0].get_offsets()[:, 1].min() == pytest.approx(edge)


def test_where_a_maker_began_stays_in_view(episode):
    plans = [*(episode(0.9 + n / 1000) for n in range(40)), episode(0.2, by="uniform")]
    assert reward_curve_figure(plans).axes[0].get_ylim()[0] < -0.05


def test_each_of_several_networks_has_a_line(episode):
    plans = [{f"{name}/conv": (0.5, 0.0)} for name in ("one", "two")]
    lines = reward_curve_figure([episode(0.5 + n / 10, plan=plans[n % 2]) for n in range(4)]).axes[0].lines
    assert {line.get_label() for line in lines} == {"ppo, one", "ppo, two"}
    assert all(len(line.get_xdata()) == 2 for line in lines)
