import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunegym.pruning.products import Factor, SumOfProducts, Term, sum_of


def by_hand(table, x, rows=None):
    total = 0.0
    for row in range(len(table.coefficient)) if rows is None else rows:
        product = table.coefficient[row]
        for k in range(len(table.fixed)):
            product *= table.fixed[k, row] + sum(a * n for a, n in zip(table.slopes[k, row], x, strict=True))
        total += product
    return total


@pytest.fixture
def table():
    """Five rows of three factors in three numbers, all whole."""
    rng = np.random.default_rng(0)
    shapes = [(5,), (3, 5), (3, 5, 3)]
    return SumOfProducts(*(rng.integers(0, 9, shape).astype(float) for shape in shapes))


def test_the_sum_for_each_of_several_vectors(table):
    xs = np.array([[1, 2, 3], [0, 0, 0], [7, 1, 4]])
    assert table.evaluate_rows(xs).tolist() == [by_hand(table, x) for x in xs]
    assert table(xs[2]) == by_hand(table, xs[2])


def test_some_of_the_numbers_being_given(table):
    some = table.restricted_to(np.array([True, False, True]), np.array([3, 5, 2]))
    for first, last in ((3, 2), (1, 1), (0, 9)):
        assert some(np.array([first, last])) == by_hand(table, [first, 5, last])


def test_some_of_the_rows(table):
    which, x = np.array([False, True, True, False, True]), np.array([4, 1, 2])
    assert table.rows(which)(x) == by_hand(table, x, rows=(1, 2, 4))


@given(st.integers(0, 10**6))
def test_factors_that_do_not_vary_can_be_folded_into_the_coefficient(seed):
    rng = np.random.default_rng(seed)
    slopes = rng.integers(0, 4, (3, 4, 2)) * rng.integers(0, 2, (3, 4, 1))
    table = SumOfProducts(
        rng.integers(1, 5, 4).astype(float), rng.integers(0, 5, (3, 4)).astype(float), slopes.astype(float)
    )
    folded, x = table.folded(), rng.integers(0, 9, 2)
    assert folded(x) == by_hand(table, x)
    assert len(folded.fixed) == max(1, (slopes != 0).any(2).sum(0).max())


def test_the_sum_of_terms_is_in_the_columns_of_their_quantities():
    kept, bits = Factor("kept", 1.0, np.array([2.0, 0.0])), Factor("bits", 0.0, np.array([3.0]))
    terms = [Term("a", "weight", 5.0, (kept, bits)), Term("b", "bias", 7.0), Term("c", "bias", 2.0, (kept,))]
    total = sum_of(terms, {"bits": slice(0, 1), "kept": slice(1, 3)})
    assert total(np.array([4, 10, 99])) == 5 * (1 + 2 * 10) * 3 * 4 + 7 + 2 * (1 + 2 * 10)
