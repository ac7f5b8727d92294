"""A platform of vLLM's for tests: CPUs that Ray counts as accelerators, one for each worker.

vLLM places Ray's workers by the accelerators of its platform (``ray_device_key``), and the platform of
CPUs has none. Ray tells a worker which accelerators it has got for the few kinds that it knows; this one
calls CPUs by such a name, NPU. vLLM's own executor for Ray, and all below it, is as it is.
"""

from __future__ import annotations

from pathlib import Path

from vllm.platforms.cpu import CpuPlatform

KEY = "NPU"


class CountedCpu(CpuPlatform):
    """CPUs that Ray counts."""

    ray_device_key = KEY


def platform() -> str:
    """The plugin: the platform's name, which vLLM imports."""
    return f"{__name__}.{CountedCpu.__name__}"


def installed(folder: Path) -> Path:
    """A folder for PYTHONPATH in which the plugin counts as installed."""
    made = folder / "counted-0.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: counted\nVersion: 0\n")
    entry = f"[vllm.platform_plugins]\ncounted = {__name__}:{platform.__name__}\n"
    (made / "entry_points.txt").write_text(entry)
    return folder
