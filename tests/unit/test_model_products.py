"""Products of bf16 matrices in fp32: rounded once, and taken only where they are faster."""

import pytest
import torch
from torch import nn

from training.model import products
from training.model.loss import linear_cross_entropy
from training.model.products import WideLinear, widen_products


@pytest.fixture
def _old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_multiplies_bf16", lambda: False)


@pytest.mark.usefixtures("_old_processor")
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_the_exact_ones_rounded_once(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias).bfloat16()
    rows = torch.randn(2, 5, 64).bfloat16().requires_grad_()
    upstream = torch.randn(2, 5, 48).bfloat16()
    exact = nn.Linear(64, 48, bias=bias).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in layer.state_dict().items()})
    exact_rows = rows.detach().double().requires_grad_()
    wanted = exact(exact_rows)
    wanted.backward(upstream.double())
    widen_products(layer)

    found = layer(rows)
    found.backward(upstream)

    assert isinstance(layer, WideLinear)
    pairs = [(found, wanted), (rows.grad, exact_rows.grad)]
    pairs += [
        (one.grad, other.grad) for one, other in zip(layer.parameters(), exact.parameters(), strict=True)
    ]
    for one, other in pairs:
        assert one.dtype == torch.bfloat16
        # Half a unit in the last of 8 bits; sums in fp32 that cancel are off by a little more.
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-5)


@pytest.mark.usefixtures("_old_processor")
def test_the_loss_in_bf16_is_that_of_wide_products() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16).bfloat16(), torch.randn(40, 16).bfloat16()
    targets = torch.randint(0, 40, (9,))
    inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]

    found = torch.autograd.grad(linear_cross_entropy(*inputs, None, targets)[0], inputs)

    wanted = torch.autograd.grad(linear_cross_entropy(*exact, None, targets)[0], exact)
    for one, other in zip(found, wanted, strict=True):
        # Logits of size 10 are rounded to 2^-6, which softmax passes on.
        torch.testing.assert_close(one.double(), other, rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("_old_processor")
def test_a_model_in_fp32_is_left_as_it_is() -> None:
    layer = nn.Linear(4, 4)
    widen_products(layer)
    assert type(layer) is nn.Linear


def test_a_processor_with_bf16_instructions_multiplies_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_multiplies_bf16", lambda: True)
    layer = nn.Linear(4, 4).bfloat16()
    widen_products(layer)
    assert type(layer) is nn.Linear
