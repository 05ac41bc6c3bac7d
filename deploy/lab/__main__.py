"""python -m deploy.lab build | where | shell: what a person wants from the lab.

`build` fills the cache, `where` prints its directory, and `shell` boots one guest, with a disk that
is thrown away, and gives a root shell on its serial console (`exit` switches it off).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import default_directory
from .errors import LabError
from .flavours import DEBIAN_12, DEBIAN_13
from .guest import ETCD, Guest
from .images import build

if TYPE_CHECKING:
    from .flavours import Flavour

_FLAVOURS = {"12": DEBIAN_12, "13": DEBIAN_13}


def main() -> int:
    """Run one command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="fill the cache")
    commands.add_parser("where", help="print the cache's directory")
    shell = commands.add_parser("shell", help="boot one guest and give a shell on its console")
    shell.add_argument("--name", default="gpu01", help="the guest's host name")
    shell.add_argument("--debian", choices=list(_FLAVOURS), default="12", help="its flavour")
    shell.add_argument("--etcd-port", type=int, help=f"a loopback port, seen at {ETCD[0]}")
    arguments = parser.parse_args()
    try:
        if arguments.command == "where":
            sys.stdout.write(f"{default_directory()}\n")
        elif arguments.command == "build":
            build()
        else:
            return _shell(arguments.name, _FLAVOURS[arguments.debian], arguments.etcd_port)
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


def _shell(name: str, flavour: Flavour, etcd_port: int | None) -> int:
    images = build()[flavour]
    forwards = {ETCD[0]: etcd_port} if etcd_port else None
    with tempfile.TemporaryDirectory(prefix="mdevns-lab-") as directory:
        guest = Guest(name, images, Path(directory), forwards=forwards)
        done = subprocess.run(guest.interactive_command(), env=images.tools.env, check=False)  # noqa: S603  our own QEMU
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
