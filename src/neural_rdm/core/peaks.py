"""What accelerators can do at most, by their makers' data sheets: dense matrix products, without sparsity."""

from __future__ import annotations

#: part of a device's name, in the order in which they are tried -> TFLOP/s of 16-bit products, of TF32 products
PEAKS: dict[str, tuple[float, float]] = {
    "GB200": (2500.0, 1250.0),
    "B200": (2250.0, 1125.0),
    "H200": (989.4, 494.7),
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.5, 417.5),
    "H100": (989.4, 494.7),
    "GH200": (989.4, 494.7),
    "H800": (989.4, 494.7),
    "A100": (312.0, 156.0),
    "A800": (312.0, 156.0),
    "L40S": (362.05, 183.0),
    "A40": (149.7, 74.8),
    "A10": (125.0, 62.5),
    "L4": (121.0, 60.0),
    "V100": (125.0, 15.7),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "MI300X": (1307.4, 653.7),
    "MI250": (362.1, 90.5),
}


def peak_tflops(device: str, precision: str) -> float | None:
    """TFLOP/s that a device can reach at a precision (`32-true`, `bf16-mixed` ...); None for one that is not listed.

    32-bit products are those of TF32, which not every run switches on: a share of it is then a lower bound.
    """
    for name, (half, single) in PEAKS.items():
        if name.lower() in device.lower():
            return single if precision.startswith("32") else half
    return None
