import pytest
import torch
from torch import nn

from rest_pg.backends.packed_linear import Int8Linear, PackedLinear, pack_linear_layers


@pytest.mark.parametrize("bias", [True, False])
def test_packed_products_are_the_same(bias: bool) -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(24, 40, bias=bias), torch.randn(3, 5, 24)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear, 15)(inputs), linear(inputs))


def test_int8_worked_by_hand() -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.27, -0.5], [0.0, 0.0]])
    with torch.inference_mode():
        output = Int8Linear(linear)(torch.tensor([[1.0, 1.0]]))
    # 1.27 - 0.50 on a scale of 0.01; a row of zeros stays zero
    torch.testing.assert_close(output, torch.tensor([[0.77, 0.0]]), atol=0.02, rtol=0)


def test_int8_is_near_for_random_weights() -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(64, 64), torch.randn(16, 64)
    with torch.inference_mode():
        exact = linear(inputs)
        error = (Int8Linear(linear)(inputs) - exact).norm() / exact.norm()
    assert 0 < error < 0.03


def test_every_linear_layer_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    with torch.inference_mode():
        pack_linear_layers(model, 4, int8=True)
        assert [type(m) for m in model.modules() if hasattr(m, "in_features")] == [Int8Linear] * 2
        assert model(torch.randn(3, 8)).shape == (3, 4)
