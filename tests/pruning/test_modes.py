import pytest
from torch import nn

from pruning.modes import evaluating


def test_every_module_returns_to_its_own_mode_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    seen = []

    def fail():
        with evaluating(model):
            seen.extend(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False] * 3
    assert [module.training for module in model.modules()] == [True, True, False]
