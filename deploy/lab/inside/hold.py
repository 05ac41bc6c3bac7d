"""Hold a mediated device open as a virtual machine does, until killed: hold.py UUID.

The device's own descriptor is what blocks a remove; the group's alone does not.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from pathlib import Path

# linux/vfio.h: _IO(';', 100 + n)
_SET_IOMMU = 0x3B66
_GROUP_GET_DEVICE_FD = 0x3B6A
_GROUP_SET_CONTAINER = 0x3B68
_TYPE1_IOMMU = 1


def main() -> None:
    """Open container, group and device, say "held", and sleep."""
    name = sys.argv[1]
    group_path = Path("/sys/bus/mdev/devices", name, "iommu_group").resolve(strict=True)
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    group = os.open(f"/dev/vfio/{group_path.name}", os.O_RDWR)
    fcntl.ioctl(group, _GROUP_SET_CONTAINER, container.to_bytes(4, "little"))
    fcntl.ioctl(container, _SET_IOMMU, _TYPE1_IOMMU)
    fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, name.encode() + b"\0")
    sys.stdout.write("held\n")
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
