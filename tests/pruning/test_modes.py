import pytest
import torch
from torch import nn

from prunegym.pruning.modes import evaluating, taking_gradients


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


def test_only_what_is_named_takes_gradients_and_the_owners_choice_comes_back():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    with taking_gradients(model, [model[0].weight]):
        model(torch.ones(1, 2)).sum().backward()
        assert [name for name, one in model.named_parameters() if one.grad is not None] == ["0.weight"]
    assert [one.requires_grad for one in model.parameters()] == [False, True, True, True]
    assert all(one.grad is None for one in model.parameters())
