"""The lab's errors.

LabError                something about the lab is not as it must be; the message says what to do
├── BuildError          an image can't be built
│   └── FetchError      a package that apt knows can't be had: its lists may be too old
└── GuestError          a guest did not do what was asked; the message ends with its console
    ├── GuestDied       QEMU ended (a panic ends it too)
    └── GuestTimeout    the deadline passed
"""

from __future__ import annotations


class LabError(Exception):
    """Something about the lab is not as it must be."""


class BuildError(LabError):
    """An image can't be built on this machine."""


class FetchError(BuildError):
    """A package that the lists name can't be fetched."""


class GuestError(LabError):
    """A guest did not do what was asked."""


class GuestDied(GuestError):
    """The guest's QEMU ended while an answer was expected."""


class GuestTimeout(GuestError):
    """The guest did not answer before the deadline."""
