"""The kinds of device that the placement instances are drawn from, with stated figures.

Owns those figures. ``peak_flops_per_s`` is the data sheet's: cores x single-precision operations a cycle x clock. What
a network sustains of it is assumed to be one share for all; the instances are about relative speeds, and an agent
measures itself anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

SUSTAINED_SHARE = 0.3
"""Of the peak, in float32 inference at batch 1: an assumption, the same for all classes."""
HEADROOM = 0.2
"""Of the memory left by the system, kept for activations: as an agent does by default."""


@dataclass(frozen=True)
class DeviceClass:
    """One kind of device: its figures, and how often it is drawn."""

    name: str
    peak_flops_per_s: float
    memory_bytes: int
    reserve_bytes: int  # the operating system's
    weight: int  # how often it is drawn, relative to the others
    remote: bool = False  # behind the site's uplink

    @property
    def compute_flops_per_s(self) -> float:
        """The operations per second that a network sustains there."""
        return self.peak_flops_per_s * SUSTAINED_SHARE

    @property
    def usable_bytes(self) -> int:
        """The memory that modules may occupy."""
        return round((self.memory_bytes - self.reserve_bytes) * (1 - HEADROOM))


GB = 10**9
CLASSES = (
    # Raspberry Pi 4 Model B, 4 GB: 4 Cortex-A72 at 1.5 GHz (raspberrypi.com, product brief), 8 operations a cycle
    # (one 128-bit fused multiply-add; measured at 7.9 a cycle: wlog.flatlib.jp, vfpbench, 2015).
    DeviceClass("pi4", 4 * 8 * 1.5e9, 4 * GB, 1 * GB, weight=2),
    # Raspberry Pi 5, 8 GB: 4 Cortex-A76 at 2.4 GHz (raspberrypi.com, product brief), 16 operations a cycle
    # (two 128-bit fused multiply-adds: Arm, Cortex-A76 Software Optimization Guide).
    DeviceClass("pi5", 4 * 16 * 2.4e9, 8 * GB, 1 * GB, weight=2),
    # NVIDIA Jetson Nano, 4 GB: 128 Maxwell cores at 921.6 MHz (Jetson Nano module data sheet; 472 GFLOP/s in float16).
    DeviceClass("jetson-nano", 128 * 2 * 921.6e6, 4 * GB, 1 * GB, weight=2),
    # NVIDIA Jetson Orin Nano, 8 GB: 1024 Ampere cores at 625 MHz (Jetson Orin Nano series data sheet).
    DeviceClass("jetson-orin", 1024 * 2 * 625e6, 8 * GB, 1 * GB, weight=2),
    # Laptop, 16 GB: AMD Ryzen 7 5800U, 8 Zen 3 cores at the base clock of 1.9 GHz (amd.com), 32 operations a cycle
    # (two 256-bit fused multiply-adds).
    DeviceClass("laptop", 8 * 32 * 1.9e9, 16 * GB, 4 * GB, weight=2),
    # Desktop with an NVIDIA GeForce RTX 3060, 12 GB: 3584 cores at 1.78 GHz boost (nvidia.com).
    DeviceClass("desktop", 3584 * 2 * 1.78e9, 12 * GB, 1 * GB, weight=1),
    # Server with an NVIDIA A100, 40 GB: 6912 cores at 1.41 GHz (A100 data sheet: 19.5 TFLOP/s in float32).
    DeviceClass("server", 6912 * 2 * 1.41e9, 40 * GB, 1 * GB, weight=1, remote=True),
)
