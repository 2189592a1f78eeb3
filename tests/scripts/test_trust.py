import pytest
import torch

from prunegym.pruning.runtime.gates import GateSite
from prunegym.scripts.benchmarks.trust import TrustGate, combined_mask

pytestmark = pytest.mark.runs

# eight units, four of which either importance alone would skip:
# by static 0, 1, 2, 3; by runtime 2, 3, 4, 5; both skip 2 and 3
STATIC = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]])
RUNTIME = torch.tensor([[0.9, 0.8, 0.1, 0.2, 0.4, 0.3, 0.7, 0.6]])


@pytest.mark.parametrize(
    ("trust", "skipped"),
    [
        (0.0, [0, 1, 2, 3]),  # static alone
        (1.0, [2, 3, 4, 5]),  # runtime alone
        (0.5, [0, 2, 3, 5]),  # of {4, 5} the one the runtime importance likes least, of {0, 1} likewise
        (0.7, [2, 3, 5]),  # floor(0.7 * 2) = 1 and floor(0.3 * 2) = 0
    ],
)
def test_a_case_by_hand(trust, skipped):
    (mask,) = combined_mask(STATIC, RUNTIME, 4, trust=trust)
    assert (mask == 0).nonzero()[:, 0].tolist() == skipped


def test_images_are_decided_apart():
    together = combined_mask(STATIC.expand(2, -1), torch.cat([RUNTIME, STATIC]), 4, trust=0.5)
    assert (together == 0).nonzero().tolist() == [[0, 0], [0, 2], [0, 3], [0, 5], *([1, u] for u in range(4))]


def test_a_gate_by_the_rule():
    site = GateSite("g", "w", 2, 8, 4, {"w": tuple(range(8))}, {"r": tuple(range(8))})
    gate = TrustGate(site, STATIC[0], trust=0.5)
    with torch.no_grad():
        gate.bias.copy_(RUNTIME[0])
    assert torch.equal(gate(torch.zeros(3, 2)), combined_mask(STATIC, RUNTIME, 4, trust=0.5).expand(3, -1))
