"""What a training runs on: memory and speed of devices, by name or as measured on this machine."""

from __future__ import annotations

import difflib
import os
import time
from dataclasses import dataclass

from o1_retriever.errors import SettingsError

GIGA = 10**9
THIS = "this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A kind of device: `memory` in bytes, `peak` in floating-point operations a second.

    The peak is that of dense matrix products in bfloat16 on a GPU and in float32 on a CPU; training
    is assumed to reach `utilisation` of it. `overhead` are the bytes that are taken before anything is
    loaded, `devices` is how many there are (None: as many as the recipe says).
    """

    name: str
    memory: int
    peak: float
    utilisation: float = 0.4
    overhead: int = GIGA
    devices: int | None = None


# Dense bfloat16 TFLOP/s and memory as the makers' data sheets have them.
_GPUS = {
    "h200-141gb": (141, 989),
    "h100-80gb": (80, 989),
    "a100-80gb": (80, 312),
    "a100-40gb": (40, 312),
    "l40s-48gb": (48, 362),
    "rtx-5090-32gb": (32, 210),
    "rtx-4090-24gb": (24, 165),
    "rtx-3090-24gb": (24, 71),
    "a10-24gb": (24, 125),
    "l4-24gb": (24, 121),
}
# Shares of a peak that training reaches: assumed for GPUs, measured for the small model on a CPU.
_GPU_UTILISATION, _CPU_UTILISATION = 0.4, 0.6


def known_hardware() -> list[str]:
    """The names that `find_hardware` takes."""
    return [*_GPUS, "cpu", THIS]


def find_hardware(name: str) -> Hardware:
    """The hardware of a name; `this` is the GPU of this machine, or else its CPU, and `cpu` is the latter.

    Raises `SettingsError` for an unknown name.
    """
    if name in _GPUS:
        gigabytes, teraflops = _GPUS[name]
        return Hardware(
            name=name, memory=gigabytes * GIGA, peak=teraflops * 1e12, utilisation=_GPU_UTILISATION
        )
    if name == "cpu":
        return _this_cpu()
    if name == THIS:
        return _this_gpu() or _this_cpu()
    near = difflib.get_close_matches(name, known_hardware(), n=1, cutoff=0.4)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise SettingsError(
        f"The hardware is {name!r}, which is not known.", hint=f"{meant}Known: {', '.join(known_hardware())}."
    )


def _this_gpu() -> Hardware | None:
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return Hardware(
        name=str(found.name),
        memory=int(found.total_memory),
        peak=_measured("cuda", 8192, torch.bfloat16),
        utilisation=_GPU_UTILISATION,
        devices=torch.cuda.device_count(),
    )


def _this_cpu() -> Hardware:
    import torch

    threads = torch.get_num_threads()
    return Hardware(
        name=f"this CPU, {threads} thread{'s' if threads > 1 else ''}",
        memory=_memory(),
        peak=_measured("cpu", 768, torch.float32),
        utilisation=_CPU_UTILISATION,
        overhead=GIGA // 2,
        devices=1,
    )


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8 * GIGA


def _measured(device: str, size: int, dtype: object) -> float:
    """Floating-point operations a second of a product of two matrices: the best of several."""
    import torch

    left = torch.randn(size, size, device=device, dtype=dtype)  # type: ignore[call-overload]
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        (left @ left).sum().item()
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 / best)
