import itertools

import numpy as np
import pytest

from prunegym.agents.pictures.canvas import figure_pixels
from prunegym.agents.pictures.inputs import (
    difficulty_figure,
    examples_figure,
    inputs_figure,
    learning_figure,
    ratios_figure,
)
from prunegym.agents.pictures.ranks import rank_correlation

MACS = np.array([0.3, 0.4, 0.4, 0.5, 0.6, 0.5, 0.7, 0.8])
DIFFICULTY = np.array([0.9, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
RIGHT = np.array([False, True, True, True, True, True, True, False])


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def labelled(artists, label):
    return next(artist for artist in artists if artist.get_label().startswith(label))


class TestInputs:
    def test_every_input_is_in_a_bar_at_its_cost(self):
        bars = inputs_figure(MACS, budget=0.5).axes[0].patches
        for value, count in ((0.3, 1), (0.4, 2), (0.6, 1), (0.8, 1)):
            near = [bar.get_height() for bar in bars if bar.get_x() - 1e-9 <= value <= bar.get_x() + 0.03]
            assert count in near
        assert sum(bar.get_height() for bar in bars) == len(MACS)

    def test_mean_and_budget_are_marked(self):
        figure = inputs_figure(MACS, budget=0.9)
        lines = {line.get_label(): line.get_xdata()[0] for line in figure.axes[0].lines}
        assert lines == {"mean 52.5%": pytest.approx(0.525), "budget 90.0%": 0.9}
        assert legend(figure) == list(lines)
        assert figure.axes[0].get_xlim()[1] > 0.9

    def test_inputs_that_cost_alike_fill_no_axis(self):
        bars = inputs_figure(np.full(5, 0.5), budget=0.5).axes[0].patches
        assert max(bar.get_height() for bar in bars) == 5
        assert bars[0].get_x() == pytest.approx(0.495)


class TestDifficulty:
    def test_right_and_wrong_differ_in_colour_and_shape(self):
        figure = difficulty_figure(MACS, DIFFICULTY, RIGHT)
        right, wrong = (marks for marks in figure.axes[0].collections if len(marks.get_offsets()))
        assert wrong.get_offsets().data == pytest.approx(np.array([[7.5 / 8, 0.3], [6.5 / 8, 0.8]]))
        assert right.get_offsets().data[:, 1] == pytest.approx(MACS[RIGHT])
        assert not np.array_equal(right.get_facecolor(), wrong.get_facecolor())
        assert len(right.get_paths()[0].vertices) != len(wrong.get_paths()[0].vertices)
        assert legend(figure)[:2] == ["right (6)", "wrong (2)"]

    def test_the_line_is_the_mean_of_each_bin_and_equal_difficulties_share_one(self):
        line = labelled(difficulty_figure(MACS, DIFFICULTY, RIGHT).axes[0].lines, "mean")
        found = line.get_xydata()
        expected = [(1, 0.4), (2.5, 0.5), (3.5, 0.6), (4.5, 0.5), (5.5, 0.7), (6.5, 0.8), (7.5, 0.3)]
        assert found == pytest.approx(np.array(expected) * [1 / 8, 1])

    def test_many_inputs_make_eight_bins(self):
        difficulty = np.random.default_rng(0).random(4000) ** 4
        line = labelled(difficulty_figure(1 - difficulty, difficulty, difficulty > 0.5).axes[0].lines, "mean")
        edges = np.quantile(difficulty, np.linspace(0, 1, 9))
        means = [
            1 - difficulty[(low <= difficulty) & (difficulty < high)].mean()
            for low, high in itertools.pairwise(edges)
        ]
        assert line.get_ydata() == pytest.approx(means, abs=1e-3)

    def test_the_ticks_say_the_losses(self):
        labels = difficulty_figure(MACS, DIFFICULTY, RIGHT).axes[0].get_xticklabels()
        assert [label.get_text() for label in labels][::2] == ["0%\n0", "50%\n0.25", "100%\n0.9"]

    def test_the_rank_correlation_is_said(self):
        assert legend(difficulty_figure(MACS, DIFFICULTY, RIGHT))[2].endswith("; rank correlation +0.28")
        assert legend(difficulty_figure(MACS * 0, DIFFICULTY, RIGHT))[2].endswith("; no rank correlation")

    def test_rank_correlation_by_hand(self):
        # without ties: 1 - 6 sum d^2 / (n (n^2 - 1)); d = 1, -1, 2, -2, 0
        assert rank_correlation(np.array([1.0, 2, 3, 4, 5]), np.array([0.1, 0, 9, 2, 99])) == pytest.approx(
            1 - 6 * 4 / (5 * 24)
        )
        # ties share the mean rank: 1.5 1.5 3 against 1 2 3
        assert rank_correlation(np.array([0.0, 0, 1]), np.array([5.0, 6, 7])) == pytest.approx(0.75**0.5)


class TestExamples:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_each_image_is_under_its_macs_and_the_cheapest_above(self, channels):
        images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, channels)).astype(np.uint8)
        macs = np.array([[0.1, 0.11, 0.12], [0.9, 0.91, 0.92]])
        axes = examples_figure(images, macs).axes[0]
        words = {text.get_text(): text.get_position() for text in axes.texts}
        assert words["cheapest"][1] > words["dearest"][1]
        for image, pixels, share in zip(axes.images, images.reshape(6, 8, 8, -1), macs.ravel(), strict=True):
            assert np.array_equal(image.get_array(), pixels.repeat(3 // channels, axis=2))
            left, right, _, top = image.get_extent()
            x, y = words[f"{share:.1%}"]
            assert left < x < right
            assert top < y < top + 0.1

    @pytest.mark.parametrize(("size", "way"), [(8, "nearest"), (32, "nearest"), (224, "antialiased")])
    def test_only_images_that_are_shrunk_are_smoothed(self, size, way):
        axes = examples_figure(np.zeros((2, 2, size, size, 3), np.uint8), np.zeros((2, 2))).axes[0]
        assert {image.get_interpolation() for image in axes.images} == {way}

    @pytest.mark.parametrize(("count", "shape"), [(1, (8, 8)), (8, (32, 32)), (16, (32, 48))])
    def test_no_words_overlap(self, count, shape):
        figure = examples_figure(np.zeros((2, count, *shape, 1), np.uint8), np.full((2, count), 0.5))
        assert_whole_and_clear(figure, figure.axes[0].texts)
        assert figure.get_figwidth() <= 8.0 + 1e-9  # as the other figures are


class TestRatios:
    RATIOS = np.stack([np.linspace(0, 0.4, 11), np.full(11, 0.2)], axis=1)

    def test_mean_band_and_plan_are_those_of_the_gate(self):
        axes = ratios_figure(["a", "b"], self.RATIOS, {"b": {"runtime_ratio": 0.3}}).axes[0]
        band = [(bar.get_x(), bar.get_width()) for bar in labelled(axes.containers, "four fifths")]
        assert np.array(band) == pytest.approx(np.array([[0.04, 0.32], [0.2, 0.0]]))
        means, planned = (labelled(axes.collections, name).get_offsets().data for name in ("mean", "fixed"))
        assert means == pytest.approx(np.array([[0.2, 0], [0.2, 1]]))
        assert planned == pytest.approx(np.array([[0.3, 1]]))
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]

    def test_without_a_plan_nothing_is_said_of_it(self):
        assert "fixed plan" not in legend(ratios_figure(["a", "b"], self.RATIOS, {}))

    @pytest.mark.parametrize("count", [1, 40])
    def test_every_label_is_whole_and_clear_of_the_next(self, count):
        gates = [f"features.denseblock{n}.denselayer{n}.conv$1$" for n in range(count)]
        figure = ratios_figure(gates, np.full((5, count), 0.2), {})
        assert not any(label.get_parse_math() for label in figure.axes[0].get_yticklabels())
        assert_whole_and_clear(figure, [*figure.axes[0].get_yticklabels(), figure.legends[0]])


class TestLearning:
    def updates(self, rounds, count, size=100):
        return [
            {"round": number, "episodes": size * done, "macs": 0.5 + done / 1000, "agrees": 0.9 - done / 1000}
            for number in range(1, rounds + 1)
            for done in range(1, count + 1)
        ]

    def test_each_round_goes_on_where_the_last_ended_and_has_its_own_line(self):
        upper, lower = learning_figure(self.updates(3, 2), budget=0.45).axes
        thin = [line for line in upper.lines if line.get_alpha()]
        assert [line.get_xdata().tolist() for line in thin] == [[100, 200], [300, 400], [500, 600]]
        assert [line.get_ydata().tolist() for line in thin] == [[0.899, 0.898]] * 3
        assert [line.get_ydata().tolist() for line in lower.lines if line.get_alpha()] == [[0.501, 0.502]] * 3
        for axes in (upper, lower):
            ends = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
            assert ends == [200, 400]

    def test_rounds_are_named_where_they_begin(self):
        words = {
            text.get_text(): text.xy[0]
            for text in learning_figure(self.updates(3, 2), budget=0.5).axes[0].texts
        }
        assert words == {"1": 0, "2": 200, "3": 400, "round": 0}
        assert not learning_figure(self.updates(1, 2), budget=0.5).axes[0].texts

    def test_the_budget_is_a_line_among_the_macs(self):
        figure = learning_figure(self.updates(1, 3), budget=0.45)
        assert labelled(figure.axes[1].lines, "budget 45.0%").get_ydata() == pytest.approx([0.45, 0.45])
        assert not learning_figure(self.updates(1, 3), budget=None).legends

    def test_the_thick_line_is_a_running_mean(self):
        updates = self.updates(1, 120)
        for number, update in enumerate(updates):
            update["agrees"] = float(number % 2)
        thin, thick = learning_figure(updates, budget=None).axes[0].lines
        assert thin.get_ydata()[:4].tolist() == [0, 1, 0, 1]
        assert np.ptp(thick.get_ydata()[5:-5]) < 0.6
        assert thick.get_ydata().mean() == pytest.approx(0.5, abs=0.01)

    def test_one_update_is_enough(self):
        figure = learning_figure(self.updates(1, 1), budget=0.5)
        assert figure.axes[0].lines[1].get_xydata().tolist() == [[100, 0.899]]

    @pytest.mark.parametrize("rounds", [2, 16])
    def test_no_words_overlap(self, rounds):
        figure = learning_figure(self.updates(rounds, 3, size=100_000), budget=0.5)
        upper, lower = figure.axes
        assert_whole_and_clear(figure, [*upper.texts, *figure.legends])
        assert_whole_and_clear(figure, [*shown(lower.xaxis), lower.xaxis.label])
        assert_whole_and_clear(figure, [*shown(upper.yaxis), *shown(lower.yaxis), upper.yaxis.label])


def shown(axis):
    figure_pixels(axis.figure)
    low, high = axis.get_view_interval()
    return [
        label
        for label, place in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
        if low <= place <= high
    ]


def assert_whole_and_clear(figure, artists):
    height, width, _ = figure_pixels(figure).shape
    boxes = [artist.get_window_extent() for artist in artists]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    for one, other in itertools.combinations(boxes, 2):
        assert not (one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1)
