"""Products of float32 matrices, by whatever torch multiplies them with."""

from __future__ import annotations

import pytest
import torch

from qxcompiler import products
from qxcompiler.products import fast_products

pytestmark = pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="an older torch has one way alone")


def test_products_stay_float32():
    torch.manual_seed(0)
    for rows, inner, columns in ((512, 576, 1536), (1536, 512, 576), (33, 4096, 65)):
        X, W = torch.randn(rows, inner), torch.randn(inner, columns)
        with fast_products():
            y = X @ W
        torch.testing.assert_close(y, (X.double() @ W.double()).float(), rtol=0, atol=2e-6 * inner)


@pytest.mark.parametrize("exact", [True, False])
def test_the_setting_lasts_as_long_as_asked_and_only_where_it_is_exact(monkeypatch, exact):
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    monkeypatch.setattr(products, "_exact", lambda: exact)
    with pytest.raises(ArithmeticError), fast_products():
        assert settings.fp32_precision == ("bf16" if exact else before)
        raise ArithmeticError
    assert settings.fp32_precision == before


def test_what_bfloat16_gives_is_not_exact(monkeypatch):
    assert products._exact()
    product = torch.Tensor.__matmul__

    def rounded(X, W):
        return product(X.bfloat16().float(), W.bfloat16().float()) if X.dtype == torch.float32 else product(X, W)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not products._exact()
