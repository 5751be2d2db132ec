"""Softmax attention by products, against float32 and the flash kernel."""

import pytest
import torch
from torch import Tensor

from rest_pg.backends import prefix_attention
from rest_pg.backends.prefix_attention import attend, sees


def outputs_and_gradients(
    dtype: torch.dtype, queries: int, keys: int, window: int | None
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 6, queries, 16), (1, 2, keys, 16), (1, 2, keys, 16), (1, 6, queries, 16)]
    *inputs, gradient = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    inputs = [x.requires_grad_() for x in inputs]
    plainly_causal = queries == keys and window is None
    seen = None if plainly_causal else sees(queries, keys, window, torch.device("cpu"))
    output = attend(*inputs, seen, 0.25, None)
    output.backward(gradient)
    return [output.detach().float(), *(x.grad.float() for x in inputs)]


@pytest.mark.parametrize(
    ("queries", "keys", "window"),
    [(40, 40, None), (30, 90, None), (1, 7, None), (30, 90, 8)],
)
def test_products_are_as_near_to_float32_as_the_flash_kernel(
    queries: int, keys: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (queries, keys, window)
    exact = outputs_and_gradients(torch.float32, *sizes)
    products = outputs_and_gradients(torch.bfloat16, *sizes)
    monkeypatch.setattr(prefix_attention, "MOST_WEIGHTS", 0)
    flash = outputs_and_gradients(torch.bfloat16, *sizes)
    assert any(not torch.equal(a, b) for a, b in zip(products, flash, strict=True))
    for name, a, b, c in zip(
        ["output", "query", "key", "value"], products, flash, exact, strict=True
    ):
        error = (a - c).norm() / c.norm()
        assert error < max(1.5 * (b - c).norm() / c.norm(), 0.006), name


def test_under_autocast_float32_inputs_are_multiplied_in_bfloat16() -> None:
    inputs = [torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        output = attend(*inputs, None, 0.5, None)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in inputs)
    assert attend(*inputs, None, 0.5, None).dtype == torch.float32


@pytest.mark.parametrize(
    ("tiles", "trained", "queries", "faster"),
    [
        pytest.param(False, False, 512, True, id="registers"),
        pytest.param(False, True, 1025, False, id="registers_too_many_weights"),
        pytest.param(True, True, 160, True, id="tiles_on_the_way_back"),
        pytest.param(True, True, 161, False, id="tiles_too_many_weights"),
        pytest.param(True, False, 160, False, id="tiles_forward"),
    ],
)
def test_products_are_taken_where_they_were_measured_to_be_faster(
    tiles: bool, trained: bool, queries: int, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    keys = 1024 if tiles else 512
    query, key = (
        torch.zeros(1, 1, n, 4, dtype=torch.bfloat16, requires_grad=trained)
        for n in (queries, keys)
    )
    assert prefix_attention._products_are_faster(query, key) is faster
