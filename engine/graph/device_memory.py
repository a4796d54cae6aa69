"""How much memory a device has for a run."""

from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBudget:
    """A device that a run may use, and what is free there.

    Attributes:
        device: `cuda` or `cpu`.
        dtype: of the UNet there.
        free: bytes that are free, including what its process already holds.
        total: bytes of the whole device; None of main memory, which others share.
    """

    device: str
    dtype: torch.dtype
    free: int
    total: int | None = None

    @property
    def usable(self) -> int:
        """Bytes that a run may take: a tenth of the device, or of what main memory has free, is left."""
        return max(0, self.free - (self.total or self.free) // 10)

    def shared(self, processes: int) -> "DeviceBudget":
        """The part of each of several processes."""
        total = None if self.total is None else self.total // processes
        return replace(self, free=self.free // processes, total=total)


def budget_of(device: torch.device, dtype: torch.dtype, loaded: int) -> DeviceBudget:
    """What this process may take of a device.

    Args:
        loaded: bytes of a video model that it already holds in main memory.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceBudget(device="cuda", dtype=dtype, free=free + torch.cuda.memory_reserved(device), total=total)
    return DeviceBudget(device="cpu", dtype=dtype, free=available_bytes() + loaded)


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Main memory that can be had: of the machine, or of the container where that is less."""
    available = psutil.virtual_memory().available
    # psutil knows machines, not containers.
    try:
        own = (proc / "self" / "cgroup").read_text().split("::", 1)[1].strip().lstrip("/")
        folder = next(at for at in (cgroup / own, cgroup) if (at / "memory.max").exists())
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return available
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Cached files give way, as they do in what the machine counts as available.
        used = int((folder / "memory.current").read_text()) - int(stat["inactive_file"])
    except (OSError, StopIteration, IndexError, KeyError, ValueError):
        return available  # no cgroup v2, or none with a limit
    return min(available, max(0, int(limit) - used))
