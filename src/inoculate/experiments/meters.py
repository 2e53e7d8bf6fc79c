"""Instruments: seconds and peak memory of what a process does."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PROC = Path("/proc/self")
_RESET_PEAK = "5"
"""What `clear_refs` takes to set VmHWM back to VmRSS; see proc(5)."""


class Clock:
    """Seconds that a device worked: of the processor those of this process, whatever else runs beside it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.how = "wall time, synchronized" if device.type == "cuda" else "processor time"

    def __call__(self) -> float:
        """Seconds since some moment."""
        if self.device.type != "cuda":
            return time.process_time()
        import torch

        torch.cuda.synchronize(self.device)
        return time.perf_counter()


class PeakMemory:
    """Peak memory over what is there when this is made, bytes.

    CUDA: what torch allocated. Linux: the peak resident set, which can be reset. Elsewhere the peak over the life of
    the process, which also holds what was needed to load the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.how = "torch.cuda.max_memory_allocated"
        else:
            self.how = "VmHWM, reset" if _reset_resident_peak() else "ru_maxrss, not reset"
        self.reset()
        self.before = self._peak()

    def reset(self) -> None:
        """Forget peaks before now, where that can be done."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_resident_peak()

    def over(self) -> int:
        """Bytes of the peak since the last reset over what there was at first."""
        return max(0, self._peak() - self.before)

    def _peak(self) -> int:
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        if self.how.startswith("VmHWM"):
            status = (_PROC / "status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_resident_peak() -> bool:
    try:
        (_PROC / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True
