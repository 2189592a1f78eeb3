import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from prunegym.pruning.compensation import lbyl
from prunegym.pruning.compensation.lbyl import bias_spread_shares, spread_shares
from prunegym.pruning.compensation.unit_weights import OutputAffine
from tests.pruning.compensation.related_units import compensated, cut_output, related, without
from tests.pruning.oracles import example

DOUBLE = torch.float64
KEPT, GONE = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])


def statistics(units, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gamma, beta, mean, variance = torch.randn(4, units, dtype=DOUBLE, generator=generator)
    variance = variance.abs() + 0.5
    return OutputAffine(gamma, beta, mean, variance, sigma=variance.sqrt())


def test_the_shares_solve_the_stacked_system(monkeypatch):
    # far larger than in use, so that both terms count
    first, second = 0.3, 0.2
    monkeypatch.setattr(lbyl, "OFFSET_PENALTY", first)
    monkeypatch.setattr(lbyl, "SHARE_PENALTY", second)
    rows = torch.randn(6, 10, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    affine = statistics(6)
    found = spread_shares(rows, affine, KEPT, GONE).numpy()
    g, b, m, v = (part.numpy() for part in (affine.gamma, affine.beta, affine.mean, affine.variance))
    for row, i in zip(found, GONE.tolist(), strict=True):
        crossings = [m[j] - v[j] * b[j] / g[j] for j in KEPT.tolist()]
        damping = [
            first * (g[i] / v[i]) ** 2 * sum(s * s for s in crossings)
            + second * (g[i] / g[j] * v[j] / v[i]) ** 2
            for j in KEPT.tolist()
        ]
        pull = [first * g[i] / v[i] * (g[i] * m[i] / v[i] - b[i]) * s for s in crossings]
        roots = np.sqrt(damping)
        stacked = np.concatenate([rows[KEPT].numpy().T, np.diag(roots)])
        targets = np.concatenate([rows[i].numpy(), pull / roots])
        expected = np.linalg.lstsq(stacked, targets, rcond=None)[0]
        np.testing.assert_allclose(row, expected, rtol=1e-8)


def test_without_batch_norm_the_shares_are_a_ridge_with_an_intercept(monkeypatch):
    monkeypatch.setattr(lbyl, "SHARE_PENALTY", 0.2)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(6, 10, dtype=DOUBLE, generator=generator)
    bias = torch.randn(6, dtype=DOUBLE, generator=generator)
    found = bias_spread_shares(rows, bias, KEPT, GONE)
    vectors = torch.cat([rows, bias[:, None]], dim=1).numpy()
    for row, i in zip(found, GONE.tolist(), strict=True):
        expected = Ridge(alpha=0.2).fit(vectors[KEPT.tolist()].T, vectors[i]).coef_
        np.testing.assert_allclose(row.numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize(("name", "group"), [("plain", "0.0"), ("bias-free", "0.0")])
def test_a_copy_of_a_kept_unit_is_made_up_for(name, group, monkeypatch):
    monkeypatch.setattr(lbyl, "OFFSET_PENALTY", 0.0)
    monkeypatch.setattr(lbyl, "SHARE_PENALTY", 1e-9)
    group = example(name)[1].group(group)
    model, graph, images = related(name, group, unit=1, source=4)
    expected = model(images).detach()
    found = cut_output(model, graph, images, without(group, 1), "lbyl")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_residual_streams_are_left_alone():
    model, graph, images = example("residual")
    changed = compensated(model, graph, images, without(graph.group("stem.0"), 2), "lbyl")
    assert all(torch.equal(value, changed.state_dict()[key]) for key, value in model.state_dict().items())
