"""Making guests fit for whoever comes next: running, and with nothing of before on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import GuestError
from .mdev import Mdev

if TYPE_CHECKING:
    from .guest import Guest

__all__ = ["mend", "tidy"]

# What mdevns and mdevctl keep, and where tests write.
_KEPT = ("/etc/mdevns", "/root/*", "/run/mdevns", "/tmp/*", "/var/lib/mdevns")  # noqa: S108  a guest's
# Definitions and scripts; the packages' own directories stay, and are all that they bring.
_SCRIPTS = ("/etc/mdevctl.d", "/usr/lib/mdevctl/scripts.d")


def mend(guest: Guest) -> bool:
    """Boot a guest that is off, paused or hangs; whether that was so. Its disk is kept if it can.

    From the main thread, as everything that boots.
    """
    if guest.answers():
        return False
    guest.power_loss()
    try:
        guest.boot()
    except GuestError:
        guest.renew()
    return True


def tidy(guest: Guest) -> None:
    """Leave nothing on a guest of who had it before; one that can't be tidied is renewed.

    What is renewed loses its disk, what is not keeps it: what was written elsewhere than mdevns,
    mdevctl and the tests do is still there. From the main thread.
    """
    mend(guest)
    try:
        _empty(guest)
    except (GuestError, OSError):
        guest.renew()


def _empty(guest: Guest) -> None:
    guest.restore_network()
    Mdev(guest).let_go()
    guest.sweep()
    Mdev(guest).reload()
    guest.run("sh", "-c", f"rm -rf {' '.join(_KEPT)}", check=True)
    for folder in _SCRIPTS:
        if guest.exists(folder):
            guest.run("find", folder, "!", "-type", "d", "-delete", check=True)
            definitions = ("-mindepth", "1", "-type", "d", "!", "-path", "*scripts.d*")
            guest.run("find", folder, *definitions, "-delete", check=True)
