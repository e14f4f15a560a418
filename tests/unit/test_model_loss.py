"""The fused cross-entropy against torch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training.model import loss as fused
from training.model.loss import Groups, Terms, linear_cross_entropy, linear_cross_entropy_per_row


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(dtype: torch.dtype, *, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(23, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 8, dtype=dtype, requires_grad=True)
    offset = torch.randn(50, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(0, 50, (23,))


def cut_at(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply so many rows at once, and take the softmax of half as many."""
    monkeypatch.setattr(fused, "_LEAST_ROWS", 1)
    monkeypatch.setitem(fused._CHUNK_ELEMENTS, "cpu", rows * 50)
    monkeypatch.setitem(fused._TILE_ELEMENTS, "cpu", rows * 25)


@pytest.mark.parametrize("rows", [1, 5, 23, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_and_gradients_equal_the_plain_ones_for_every_chunk_size(
    rows: int, bias: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(rows, monkeypatch)
    hidden, weight, offset, targets = make(dtype, bias=bias)
    inputs = [tensor for tensor in (hidden, weight, offset) if tensor is not None]
    plain = F.cross_entropy(F.linear(hidden, weight, offset), targets, reduction="sum")
    # A factor shows that what comes from above is used.
    wanted = torch.autograd.grad(plain * 0.37, inputs)
    loss, sums = linear_cross_entropy(hidden, weight, offset, targets)
    found = torch.autograd.grad(loss * 0.37, inputs)
    torch.testing.assert_close(loss, plain, rtol=tolerance, atol=tolerance)
    assert sums.tolist() == pytest.approx([loss.item()], rel=1e-6)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance * 10, atol=tolerance * 10)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_the_sums_of_groups_are_those_of_their_rows_and_change_no_gradient(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(rows, monkeypatch)
    hidden, weight, offset, targets = make(torch.float32, bias=True)
    numbers = torch.arange(23) % 3 * 2  # groups 1 and 3 have no row
    logits = F.linear(hidden, weight, offset).detach().double()
    plain = F.cross_entropy(logits, targets, reduction="none")
    whole, _ = linear_cross_entropy(hidden, weight, offset, targets)
    wanted = torch.autograd.grad(whole, (hidden, weight, offset))

    loss, sums = linear_cross_entropy(hidden, weight, offset, targets, Groups(numbers, 5))

    assert sums.dtype == torch.float64
    assert not sums.requires_grad
    of_rows = [float(plain[numbers == group].sum()) for group in range(5)]
    assert sums.tolist() == pytest.approx(of_rows, rel=1e-6)
    assert loss.item() == whole.item() == pytest.approx(sum(of_rows), rel=1e-6)
    for one, other in zip(torch.autograd.grad(loss, (hidden, weight, offset)), wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 1e-2), (0.3, 1e-3)])
def test_smoothing_and_z_loss_are_those_of_the_plain_formulas_and_the_told_sums_are_without_them(
    rows: int, smoothing: float, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(rows, monkeypatch)
    hidden, weight, offset, targets = make(torch.float64, bias=True)
    inputs = (hidden, weight, offset)
    logits = F.linear(hidden, weight, offset)
    plain = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    plain = plain + z_loss * logits.logsumexp(-1).square().sum()
    wanted = torch.autograd.grad(plain, inputs)

    loss, sums = linear_cross_entropy(*inputs, targets, None, Terms(smoothing, z_loss))

    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=1e-12)
    assert sums.item() == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-12)
    assert abs(loss.item() - sums.item()) > 1e-3, "the case must tell the two apart"
    for one, other in zip(torch.autograd.grad(loss, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_second_backward_is_refused_because_the_first_one_scaled_the_gradients_in_place() -> None:
    hidden, weight, offset, targets = make(torch.float64, bias=True)
    loss, _ = linear_cross_entropy(hidden, weight, offset, targets)
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="handed out by an earlier backward"):
        loss.backward()


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight, _, targets = make(torch.float32, bias=False)
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, None, targets)[0].backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_losses_per_row_sum_up_to_the_loss() -> None:
    hidden, weight, offset, targets = make(torch.float64, bias=True)
    rows = linear_cross_entropy_per_row(hidden, weight, offset, targets)
    plain = F.cross_entropy(F.linear(hidden, weight, offset), targets, reduction="none")
    torch.testing.assert_close(rows, plain.detach())


def test_bf16_inputs_give_an_fp32_loss_near_the_fp32_one() -> None:
    hidden, weight, _, targets = make(torch.float32, bias=False)
    wide, _ = linear_cross_entropy(hidden, weight, None, targets)
    narrow, _ = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), None, targets)
    assert narrow.dtype == torch.float32
    # Inputs rounded to 8 bits of mantissa: 2^-8 relative, times the logits' size.
    torch.testing.assert_close(narrow, wide, rtol=2e-2, atol=0)


def test_memory_does_not_grow_with_the_number_of_rows_times_the_vocabulary() -> None:
    # All logits at once would be 2,048 x 16,384 fp32 = 128 MiB; the chunks are 32 MiB.
    hidden = torch.randn(2048, 4, requires_grad=True)
    weight = torch.randn(16384, 4)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        linear_cross_entropy(hidden, weight, None, torch.zeros(2048, dtype=torch.int64))
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 32 * 2**20
