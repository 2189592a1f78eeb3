import math

import pytest
import torch
from torch import nn

from prunegym.envs.objectives import (
    DrawnImagesObjective,
    FunctionObjective,
    ImageObjective,
    ImagePool,
    first_batches,
)
from prunegym.pruning.errors import DataError
from tests.pruning.example_networks import EXAMPLES


class Saying(nn.Module):
    """Says the same of every image as it is told."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits[images.flatten().long()]


IMAGES = torch.arange(2).float()
EVEN, SURE = [0.0, 0.0], [math.log(3.0), 0.0]  # softmax: (1/2, 1/2) and (3/4, 1/4)


def image_objective(goal="divergence"):
    return ImageObjective(
        Saying([SURE, SURE]),
        [(IMAGES, torch.tensor([1, 0]))],
        goal=goal,
    )


@pytest.mark.parametrize("goal", ["divergence", "accuracy"])
def test_accuracy_and_divergence_by_hand(goal):
    score = image_objective(goal)(Saying([EVEN, SURE]), to_beat=math.inf, known=[])
    one_image = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL(dense || compressed)
    assert score.accuracy == 0.5  # the first is a tie, which goes to class 0
    assert score.divergence == pytest.approx(one_image / 2, rel=1e-6)
    assert score.loss == (score.divergence if goal == "divergence" else 0.5)
    assert not score.estimated


def test_the_dense_network_does_not_diverge_from_itself():
    assert image_objective()(Saying([SURE, SURE]), to_beat=math.inf, known=[]).loss == 0.0


COUNT = 40
MANY = torch.arange(COUNT).float()


def saying(sureness):
    """A network that gives image i the logits (sureness_i, 0)."""
    return Saying([[float(value), 0.0] for value in sureness])


def drawing_objective(anchor, drawn=8, batches=None):
    batches = batches or [(MANY[:25], torch.zeros(25)), (MANY[25:], torch.zeros(15))]
    return DrawnImagesObjective(ImagePool(saying([0.0] * COUNT), batches, drawn=drawn), anchor=lambda: anchor)


def losses(sureness):
    """KL((1/2, 1/2) || softmax(s, 0)) of each image, by hand."""
    return [-0.5 * math.log(4 * math.exp(s) / (1 + math.exp(s)) ** 2) for s in sureness]


def judged(objective, model, draw):
    return objective(model, to_beat=math.inf, known=[], draw=draw)


class TestDrawnImages:
    hard = tuple(0.1 * (1 + image % 7) for image in range(COUNT))

    def test_without_a_draw_all_images_judge(self):
        score = judged(drawing_objective(saying(self.hard)), saying(self.hard), None)
        assert score.loss == score.divergence == pytest.approx(sum(losses(self.hard)) / COUNT, rel=1e-6)
        assert score.accuracy == 1.0

    def test_what_loses_as_the_anchor_does_is_judged_exactly_by_any_draw(self):
        objective = drawing_objective(saying(self.hard))
        for draw in range(5):
            found = judged(objective, saying(self.hard), draw).loss
            assert found == pytest.approx(sum(losses(self.hard)) / COUNT, rel=1e-3)

    def test_a_draw_is_of_so_many_images_and_its_loss_is_scaled_by_the_anchors(self):
        other = [0.02 * image for image in range(COUNT)]
        objective = drawing_objective(saying(self.hard))
        whole, mine = losses(self.hard), losses(other)
        which = objective._pool.draw(3).tolist()
        assert len(which) == len(set(which)) == 8
        ratio = sum(mine[at] for at in which) / sum(whole[at] for at in which)
        expected = ratio * sum(whole) / COUNT
        assert judged(objective, saying(other), 3).loss == pytest.approx(expected, rel=1e-3)

    def test_equal_draws_are_equal_and_others_differ_and_none_is_left_out_in_the_long_run(self):
        one, other = (drawing_objective(saying(self.hard)) for _ in range(2))
        draws = [tuple(one._pool.draw(draw).tolist()) for draw in range(60)]
        assert draws == [tuple(other._pool.draw(draw).tolist()) for draw in range(60)]
        assert len(set(draws)) == 60
        assert set().union(*draws) == set(range(COUNT))

    def test_it_errs_in_both_directions_and_less_than_without_an_anchor(self):
        sureness = [value + 0.01 * (image % 3) for image, value in enumerate(self.hard)]
        true = sum(losses(sureness)) / COUNT
        objective = drawing_objective(saying(self.hard))
        errors = [judged(objective, saying(sureness), draw).loss - true for draw in range(40)]
        plain = [
            sum(losses(sureness)[at] for at in objective._pool.draw(draw)) / 8 - true for draw in range(40)
        ]
        assert min(errors) < 0 < max(errors)
        assert sum(map(abs, errors)) < 0.3 * sum(map(abs, plain))

    def test_another_anchor_errs_more_but_not_to_one_side(self):
        """As where scores stayed anchored at the uniform plan of another budget: noisier, not wrong."""
        sureness = [value + 0.01 * (image % 3) for image, value in enumerate(self.hard)]
        true = sum(losses(sureness)) / COUNT
        spread = {}
        for name, anchor in {
            "own": self.hard,
            "other": [0.1 + 0.02 * (image % 5) for image in range(COUNT)],
        }.items():
            objective = drawing_objective(saying(anchor))
            errors = [judged(objective, saying(sureness), draw).loss / true - 1 for draw in range(300)]
            assert abs(sum(errors) / 300) < 0.03
            spread[name] = sum(map(abs, errors)) / 300
        assert spread["own"] < 0.2 * spread["other"]

    def test_where_there_are_no_more_images_than_to_draw_all_judge(self):
        objective = drawing_objective(saying(self.hard), drawn=COUNT)
        assert judged(objective, saying(self.hard), 1) == judged(objective, saying(self.hard), None)

    def test_one_batch_is_not_copied(self):
        objective = drawing_objective(saying(self.hard), batches=[(MANY, torch.zeros(COUNT))])
        assert objective._pool._images.untyped_storage().data_ptr() == MANY.untyped_storage().data_ptr()

    def test_a_perfect_anchor_divides_by_nothing(self):
        objective = drawing_objective(saying([0.0] * COUNT))
        assert judged(objective, saying([0.0] * COUNT), 1).loss == pytest.approx(0.0, abs=1e-9)

    def test_none_to_draw_is_refused(self):
        with pytest.raises(DataError, match="at least one image to be judged by, got 0"):
            drawing_objective(saying(self.hard), drawn=0)


def first_weight(model):
    return float(next(model.parameters()).flatten()[0])


def linear(weight):
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, weight)
    return layer


@pytest.mark.parametrize(
    ("dense", "small", "loss"),
    [(0.5, 0.4, 0.2), (-2.0, -3.0, 0.5), (0.5, 0.6, 0.0), (0.0, -0.25, 0.25)],
)
def test_a_functions_loss_is_what_is_missing_of_the_dense_networks_score(dense, small, loss):
    score = FunctionObjective(first_weight, linear(dense))(linear(small), to_beat=0.0, known=[])
    assert score.loss == pytest.approx(loss, rel=1e-5)
    assert score.score == pytest.approx(small)
    assert not score.estimated


def test_a_function_may_change_what_it_is_given():
    def spoil(model):
        assert not model.training
        nn.init.zeros_(model.weight)
        return 1.0

    dense = linear(0.5)
    FunctionObjective(spoil, dense)
    assert dense.weight.item() == 0.5


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda model: math.nan, "returned nan"),
        (lambda model: -math.inf, "returned -inf"),
        (lambda model: None, "TypeError"),
        (lambda model: {}["mAP\n50"], "KeyError: 'mAP"),
    ],
)
def test_a_function_that_gives_no_number_is_refused_in_one_line(function, words):
    with pytest.raises(DataError) as caught:
        FunctionObjective(function, linear(0.5))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "begin", "rest"),
    [
        (None, [4, 4, 2], []),
        (1, [1], [3, 4, 2]),
        (4, [4], [4, 2]),
        (6, [4, 2], [2, 2]),
        (10, [4, 4, 2], []),
        (99, [4, 4, 2], []),
    ],
)
def test_the_first_images_and_the_rest_are_all_images_in_their_order_and_no_copies(first, begin, rest):
    images, labels = EXAMPLES["plain"].images(10), torch.arange(10)
    parts = first_batches(list(zip(images.split(4), labels.split(4), strict=True)), first)
    assert [[len(batch[1]) for batch in part] for part in parts] == [begin, rest]
    batches = [*parts[0], *parts[1]]
    assert torch.equal(torch.cat([batch[1] for batch in batches]), labels)
    assert torch.equal(torch.cat([batch[0] for batch in batches]), images)
    assert {batch[0].untyped_storage().data_ptr() for batch in batches} == {
        images.untyped_storage().data_ptr()
    }
