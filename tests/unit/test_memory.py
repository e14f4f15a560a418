"""The account of memory: what a tensor of another make holds is counted as well."""

from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import torch

from training.engine.memory import MemoryMeter


def test_the_scales_of_four_bit_blocks_are_weights_and_counted_once() -> None:
    layer = bitsandbytes.nn.Linear4bit(
        128, 64, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    ).to("cpu")
    module = torch.nn.ModuleList([layer, layer])
    meter = MemoryMeter(torch.device("cpu"))

    meter.after_update(SimpleNamespace(module=module, optimizer=SimpleNamespace(state={})))

    state = layer.weight.quant_state
    tensors = (layer.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    assert meter.account is not None
    assert meter.account.weights == sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    # Half a byte per weight, and a scale of one byte for each 64 of them.
    assert meter.account.weights >= 128 * 64 // 2 + 128 * 64 // 64


def test_what_was_swapped_out_is_told_beside_the_memory(tmp_path: Path) -> None:
    (tmp_path / "rank0").mkdir()
    (tmp_path / "rank0" / "weights.swp").write_bytes(bytes(4096))
    (tmp_path / "rank0" / "moments.swp").write_bytes(bytes(8192))
    meter = MemoryMeter(torch.device("cpu"), str(tmp_path))

    meter.after_update(SimpleNamespace(module=torch.nn.Identity(), optimizer=SimpleNamespace(state={})))

    assert meter.account is not None
    assert meter.account.disk == 4096 + 8192
    assert meter.account.weights == 0
