from __future__ import annotations

import pytest
from torch import nn

from pruning.data import load_splits
from pruning.errors import UnknownNameError
from pruning.networks import NetworkSpec

GREY = NetworkSpec("grey", nn.Identity, (1, 4, 5), (0.0,), (1.0,))


def test_an_unknown_kind_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        load_splits("digit", GREY)


@pytest.mark.parametrize("spec", ["npz", "npz:", "", "digits:extra"])
def test_half_a_specification_is_refused(spec):
    with pytest.raises(UnknownNameError):
        load_splits(spec, GREY)
