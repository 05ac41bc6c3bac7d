"""Hold a mediated device open as a virtual machine does, until killed: hold.py UUID.

The device's own descriptor is what blocks a remove; the group's alone does not.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

# linux/vfio.h: _IO(';', 100 + n)
_SET_IOMMU = 0x3B66
_GROUP_GET_DEVICE_FD = 0x3B6A
_GROUP_SET_CONTAINER = 0x3B68
_TYPE1_IOMMU = 1


def hold(name: str) -> tuple[int, int, int]:
    """Open container, group and device; gives their descriptors. Raises the kernel's OSError."""
    with ExitStack() as undone:
        container = os.open("/dev/vfio/vfio", os.O_RDWR)
        undone.callback(os.close, container)
        group = hold_group(name)
        undone.callback(os.close, group)
        fcntl.ioctl(group, _GROUP_SET_CONTAINER, container.to_bytes(4, "little"))
        fcntl.ioctl(container, _SET_IOMMU, _TYPE1_IOMMU)
        # A buffer that can be changed: only then is the answer the number that ioctl gives.
        device = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0"))
        undone.pop_all()
    return container, group, device


def hold_group(name: str) -> int:
    """Open the device's group only; gives its descriptor."""
    group = Path("/sys/bus/mdev/devices", name, "iommu_group").resolve(strict=True)
    return os.open(f"/dev/vfio/{group.name}", os.O_RDWR)


def main() -> None:
    """Hold it, say "held", and sleep."""
    hold(sys.argv[1])
    sys.stdout.write("held\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
