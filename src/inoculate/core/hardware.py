"""Devices that a plan can be made for: memory, arithmetic and bandwidth from their public data sheets, and a price.

Rates are peaks of dense arithmetic: bf16 with float32 accumulation on tensor cores (without sparsity), float32 outside
them, as torch multiplies by default. A price is an assumption, what an hour typically costs to rent: give your own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from inoculate.core.errors import InputError

GIB = 2**30
TIGHT = 0.9
"""Share of a device's memory beyond which a plan is tight: the driver, the allocator's gaps and kernels' workspaces
are not planned."""


@dataclass(frozen=True)
class Device:
    """One accelerator. Memory in 10⁹ bytes, rates in FLOP/s, bandwidth in bytes/s, price in USD per hour."""

    name: str
    memory_gb: int
    bf16: float
    fp32: float
    bandwidth: float
    usd_per_hour: float


_ALL = (
    Device("H100-80G", 80, 989e12, 67e12, 3.35e12, 2.5),  # SXM
    Device("A100-80G", 80, 312e12, 19.5e12, 2.039e12, 1.6),  # SXM
    Device("A100-40G", 40, 312e12, 19.5e12, 1.555e12, 1.2),
    Device("L40S-48G", 48, 362e12, 91.6e12, 0.864e12, 0.9),
    Device("RTX4090-24G", 24, 165e12, 82.6e12, 1.008e12, 0.4),
)
DEVICES: Mapping[str, Device] = MappingProxyType({device.name: device for device in _ALL})


Launch = Literal["ddp", "fsdp"]
"""How several devices train one model: each holds all of it and some of the rows, or pieces of its weights too."""


@dataclass(frozen=True)
class Hardware:
    """`count` devices, alike."""

    device: Device
    count: int = 1

    @property
    def name(self) -> str:
        """As it is written: `8xH100-80G`."""
        return f"{self.count}x{self.device.name}"

    def seconds(self, flops: float, bytes_read: float, utilization: float, bf16: bool) -> float:
        """Wall time on one device of work bound by arithmetic or, where weights are read for few tokens, by memory.

        Args:
            flops: FLOPs in all.
            bytes_read: bytes that must pass from memory in all.
            utilization: share of the peak rate that is reached, 0 to 1.
            bf16: whether products are of bf16 numbers, else float32.
        """
        rate = (self.device.bf16 if bf16 else self.device.fp32) * utilization
        return max(flops / rate, bytes_read / self.device.bandwidth)

    def fits(self, peak_bytes: float) -> str:
        """`yes`, `tight` (within a tenth of the memory) or `no`."""
        share = peak_bytes / (self.device.memory_gb * 1e9)
        return "yes" if share <= TIGHT else "tight" if share <= 1 else "no"


def parse_hardware(text: str) -> Hardware:
    """`A100-80G` or `8xA100-80G`.

    Raises:
        InputError: for an unknown device or no devices; the nearest name is proposed.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", text)
    count, name = (int(match[1] or 1), match[2]) if match else (1, text)
    if name not in DEVICES:
        expected = "one of " + ", ".join(DEVICES) + ", with a count before it as in 2xA100-80G"
        raise InputError("no such hardware", field="--hardware", found=name, expected=expected, known=DEVICES)
    if count < 1:
        raise InputError("at least one device is needed", field="--hardware", found=text)
    return Hardware(DEVICES[name], count)
