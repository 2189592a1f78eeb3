import pytest

from prunegym.pruning.compensation import COMPENSATIONS
from tests.pruning.compensation.cases import run
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import assert_untouched, example, snapshot


@pytest.mark.parametrize("compensation", list(COMPENSATIONS))
@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryCompensation:
    def test_keeps_the_shapes_of_all_weights_and_leaves_the_dense_model_alone(self, name, compensation):
        before = snapshot(example(name)[0])
        model, changed, _, _, _, _ = run(name, compensation)
        assert_untouched(model, before)
        after = changed.state_dict()
        assert all(after[key].shape == before[key].shape for key in before)
        assert all(tensor.isfinite().all() for tensor in after.values())
        assert all(key.endswith(".bias") for key in after.keys() - before.keys())
