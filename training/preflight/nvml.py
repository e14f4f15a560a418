"""What NVML tells of a GPU's health; pynvml comes with the extra `gpu` (package nvidia-ml-py)."""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

from training.errors import ClusterError
from training.preflight.facts import GpuHealth

# nvml.h, nvmlClocksEventReasons; idling, an application's own clocks and the power cap are daily business.
_THROTTLES = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def load_nvml() -> Any:
    """Import pynvml and open NVML.

    Raises:
        ClusterError: The package is not installed.
        Exception: There is no driver; a class of pynvml's.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise ClusterError("nvidia-ml-py is not installed; pip install 'metier[gpu]'") from None
    nvml.nvmlInit()
    return nvml


def count_gpus(nvml: Any) -> int:
    """Count the GPUs that this process may see."""
    return int(nvml.nvmlDeviceGetCount())


def find_driver(nvml: Any) -> str:
    """Give the version of NVIDIA's driver."""
    return str(nvml.nvmlSystemGetDriverVersion())


class GpuWatch:
    """One GPU: watched for critical errors from ``open`` on, asked for its health by ``read``."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        """Begin to watch; what lies in the GPU's memory now was not put there by this process."""
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._used_bytes = self._ask(lambda: int(nvml.nvmlDeviceGetMemoryInfo(self._handle).used))
        self._events: Any = None
        with contextlib.suppress(nvml.NVMLError):
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._handle, nvml.nvmlEventTypeXidCriticalError, events)
            self._events = events

    @classmethod
    def open(cls, uuid: str) -> "GpuWatch":
        """Begin to watch the GPU with this UUID.

        Raises:
            Exception: NVML, or the GPU, is not there.
        """
        return cls(load_nvml(), uuid)

    def read(self) -> GpuHealth:
        """Ask; what this GPU does not know stays None."""
        nvml, handle = self._nvml, self._handle
        rows = self._ask(lambda: nvml.nvmlDeviceGetRemappedRows(handle))
        pending = self._ask(
            lambda: nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle) == nvml.NVML_FEATURE_ENABLED
        )
        reasons = self._ask(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))) or 0
        return GpuHealth(
            uncorrected_errors=self._ask(
                lambda: int(
                    nvml.nvmlDeviceGetTotalEccErrors(
                        handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                    )
                )
            ),
            rows_pending=bool(rows[2]) if rows else pending,
            rows_failed=bool(rows[3]) if rows else None,
            xids=tuple(self._read_xids()),
            throttled=tuple(word for bit, word in _THROTTLES.items() if reasons & bit),
            celsius=self._ask(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            used_bytes=self._used_bytes,
        )

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._nvml.NVMLError:
            return None  # this kind of GPU, or this user, is not told

    def _read_xids(self) -> list[int]:
        xids: list[int] = []
        with contextlib.suppress(self._nvml.NVMLError):
            while self._events is not None:
                # Raises a timeout when there is no further event.
                xids.append(int(self._nvml.nvmlEventSetWait(self._events, 1).eventData))
        return xids
