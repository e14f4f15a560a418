"""The device of a rank: how fast it multiplies, and how fast data gets there and back."""

import time

import torch

from training.preflight.facts import DeviceFacts
from training.preflight.looks import Looks
from training.preflight.nvml import GpuWatch
from training.preflight.rate import best_rate

_CPU_SIZE = 768
_GPU_SIZE = 8192
_MOVED_BYTES = 256 << 20


def look_at_device(looks: Looks, *, gpus_per_node: int, local_rank: int) -> DeviceFacts:
    """Look at this rank's own device."""
    return _look_at_gpu(looks, local_rank) if gpus_per_node else _look_at_cpu(looks)


def find_gpu(local_rank: int) -> torch.device:
    """Choose this rank's GPU as the worker does: srun may show each rank its own alone."""
    return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else local_rank)


def _look_at_cpu(looks: Looks) -> DeviceFacts:
    found = looks.take("matrix product", _multiply_on_cpu)
    rate, share = found or (None, None)
    return DeviceFacts(name="CPU", matmul_tflops=rate, cpu_share=share)


def _multiply_on_cpu() -> tuple[float, float]:
    left, right = torch.rand(_CPU_SIZE, _CPU_SIZE), torch.rand(_CPU_SIZE, _CPU_SIZE)
    product = torch.empty(_CPU_SIZE, _CPU_SIZE)

    def work() -> None:
        torch.mm(left, right, out=product)

    work()
    began, used = time.perf_counter(), time.process_time()
    rate = best_rate(work, 2 * _CPU_SIZE**3 / 1e12)
    seconds = time.perf_counter() - began
    return rate, (time.process_time() - used) / seconds / torch.get_num_threads()


def _look_at_gpu(looks: Looks, local_rank: int) -> DeviceFacts:
    device = find_gpu(local_rank)
    began = len(looks.undone)
    # Before anything of ours lies in the GPU's memory; NVML goes by the UUID, CUDA may count otherwise.
    uuid = looks.take("GPU", lambda: f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    if uuid is None:
        return DeviceFacts(name=f"GPU {device.index}", error=looks.undone[began].partition(": ")[2])
    watch = looks.take("NVML", lambda: GpuWatch.open(uuid))
    rate = looks.take("matrix product", lambda: _multiply_on_gpu(device))
    error = looks.undone[-1].partition(": ")[2] if rate is None else None
    moved = None if rate is None else looks.take("copies to and from the GPU", lambda: _move(device))
    health = looks.take("health of the GPU", watch.read) if watch else None
    return DeviceFacts(
        name=f"GPU {device.index}",
        uuid=uuid,
        matmul_tflops=rate,
        to_device_gbps=moved[0] if moved else None,
        from_device_gbps=moved[1] if moved else None,
        health=health,
        error=error,
    )


def _multiply_on_gpu(device: torch.device) -> float:
    left, right = (torch.rand(_GPU_SIZE, _GPU_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)

    def work() -> None:
        for _ in range(10):
            torch.mm(left, right, out=product)
        torch.cuda.synchronize(device)

    return best_rate(work, 10 * 2 * _GPU_SIZE**3 / 1e12)


def _move(device: torch.device) -> tuple[float, float]:
    here = torch.ones(_MOVED_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_MOVED_BYTES, dtype=torch.uint8, device=device)

    def send() -> None:
        there.copy_(here, non_blocking=True)
        torch.cuda.synchronize(device)

    def fetch() -> None:
        here.copy_(there, non_blocking=True)
        torch.cuda.synchronize(device)

    return best_rate(send, _MOVED_BYTES / 1e9, rounds=2), best_rate(fetch, _MOVED_BYTES / 1e9, rounds=2)
