"""On a GPU a resumed run is the same run, the account of memory is right, and so is the fused loss."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint_case import at, open_store
from tests.ranks.spawn import on_ranks
from tests.ranks.test_engine import open_engine, open_place, run_steps
from tests.ranks.training_case import make_config
from training.model.load import build_model
from training.model.loss import linear_cross_entropy

GPU = torch.device("cuda", 0)
ACCOUNT = 0.1
"""Of what the device has allocated, at most so much may be missing from the account: DeepSpeed's scratch."""


def configure(stage: int, precision: str, **settings: Any) -> Any:
    return make_config(
        **{
            "strategy.zero_stage": stage,
            "precision": precision,
            "cluster.gpus_per_node": 1,
            "cluster.processes_per_node": 1,
            **settings,
        }
    )


def interrupt(root: Path, stage: int, precision: str, adapter: bool) -> bool:
    """Train six steps; again with a save beside the training after three, a new engine and a load."""
    from training.engine.seeds import make_deterministic

    make_deterministic()
    config = configure(stage, precision)
    place = open_place(config, GPU)
    whole = open_engine(config, place, adapter=adapter)
    wanted = run_steps(whole, config, place, range(6))
    whole.close()
    first = open_engine(config, place, adapter=adapter)
    before = run_steps(first, config, place, range(3))
    store = open_store(root, first, config, place)
    store.save(at(3))
    run_steps(first, config, place, range(3, 5))
    store.close()
    first.close()
    second = open_engine(config, place, adapter=adapter)
    assert open_store(root, second, config, place).resume() == at(3)
    same: bool = before + run_steps(second, config, place, range(3, 6)) == wanted
    return same


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    stage: int, precision: str, adapter: bool, tmp_path: Path
) -> None:
    assert on_ranks(1, interrupt, tmp_path, stage, precision, adapter, accelerator="cuda") == [True]


def account(stage: int) -> tuple[int, int]:
    """Give the bytes that the account has, and those that torch's allocator has, after some steps."""
    config = configure(stage, "bf16")
    place = open_place(config, GPU)
    engine = open_engine(config, place, adapter=False)
    run_steps(engine, config, place, range(2))
    found = engine.memory
    assert found is not None
    told = found.weights + found.optimizer + found.buckets + found.buffers - found.host
    return told, torch.cuda.memory_allocated(GPU)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_account_of_memory_is_what_the_device_has_allocated(stage: int) -> None:
    [(told, allocated)] = on_ranks(1, account, stage, accelerator="cuda")
    # Every tensor takes a multiple of 512 bytes there, and this model's are small.
    assert told <= allocated + 512 * 200
    assert allocated - told <= ACCOUNT * allocated + 512 * 200 + 16 * 2**20


def load_in_four_bits(folder: Path) -> tuple[int, int]:
    """Give the most bytes that loading in 4 bits took on the device, and those of the 16-bit weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=12,
            num_attention_heads=16,
            vocab_size=256,
        )
    ).to(torch.bfloat16)
    size = sum(parameter.numel() for parameter in model.parameters()) * 2
    model.save_pretrained(folder)
    del model
    config = configure(2, "bf16", **{"adapter": "qlora", "model.source": "huggingface", "model.path": folder})
    torch.cuda.reset_peak_memory_stats()
    built = build_model(
        config.model, config.adapter, precision="bf16", device=GPU, seed=0, activation_checkpointing="none"
    )
    assert all(parameter.device == GPU for parameter in built.parameters())
    return torch.cuda.max_memory_allocated(), size


def test_a_16_bit_model_never_has_to_fit_where_its_4_bit_form_is_trained(tmp_path: Path) -> None:
    [(peak, size)] = on_ranks(1, load_in_four_bits, tmp_path, accelerator="cuda")
    assert peak < 0.6 * size


def compare_losses(dtype: torch.dtype) -> list[float]:
    """Give how far loss and gradients are from torch's in fp64, in parts of the largest value."""
    torch.manual_seed(2)
    shapes = ((3000, 128), (50_000, 128))
    tensors = [torch.randn(shape, device=GPU, dtype=dtype) * 0.2 for shape in shapes]
    targets = torch.randint(shapes[1][0], (shapes[0][0],), device=GPU)
    ours = [tensor.clone().requires_grad_() for tensor in tensors]
    plain = [tensor.double().requires_grad_() for tensor in tensors]
    loss, _ = linear_cross_entropy(*ours, None, targets)
    wanted = torch.nn.functional.cross_entropy(plain[0] @ plain[1].T, targets, reduction="sum")
    loss.backward()
    wanted.backward()
    pairs = [(loss, wanted), *((one.grad, other.grad) for one, other in zip(ours, plain, strict=True))]
    return [float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_the_fused_loss_is_the_loss(dtype: torch.dtype, bound: float) -> None:
    [far] = on_ranks(1, compare_losses, dtype, accelerator="cuda")
    assert all(distance <= bound for distance in far), far
