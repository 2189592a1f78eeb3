import pytest

from prunegym.pruning.errors import UnknownNameError
from prunegym.pruning.registry import Registry


@pytest.fixture
def shapes():
    registry = Registry("shape")
    registry.register("square")(4)
    registry.register("circle")(0)
    return registry


def test_entries_are_found_listed_and_counted_in(shapes):
    assert shapes["square"] == 4
    assert list(shapes) == ["square", "circle"]
    assert "circle" in shapes
    assert "cube" not in shapes


def test_registering_returns_what_it_files(shapes):
    @shapes.register("area")
    def area():
        return 1

    assert area() == shapes["area"]() == 1


def test_a_second_of_a_name_is_refused_and_the_first_stays(shapes):
    with pytest.raises(ValueError, match="shape 'square' is registered twice"):
        shapes.register("square")
    assert shapes["square"] == 4


def test_an_unknown_name_gets_the_nearest_and_the_list(shapes):
    with pytest.raises(UnknownNameError) as caught:
        shapes["sqare"]
    assert str(caught.value) == "no shape named 'sqare'. Did you mean 'square'? Known: circle, square"


def test_a_name_near_nothing_gets_the_list_alone(shapes):
    with pytest.raises(UnknownNameError) as caught:
        shapes["xyz"]
    assert str(caught.value) == "no shape named 'xyz'. Known: circle, square"
