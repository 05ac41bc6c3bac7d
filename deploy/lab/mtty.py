"""A slow mtty: its create is held open for as long as a test wants. And one that crashes.

The sample driver makes a device in no time, so nothing could be killed in between. The copy that
the lab builds has a module parameter, /sys/module/mtty/parameters/create_delay_ms. The driver takes
the device's ports first, as vendors' drivers do, and is slow then. The sleep can't be interrupted:
whoever writes to `create` is in state D, and no signal frees it. A smaller value ends sleeps that
are under way, so a test holds a create with a large value and lets it go with 0.

Writing anything to the parameter `oops` is a bug of the driver: an oops of the kernel, in the
process that writes.
"""

from __future__ import annotations

from .errors import BuildError

_INCLUDES = "#include <linux/module.h>\n"
_PROBE = "static int mtty_probe(struct mdev_device *mdev)\n{\n"
_REGISTERS = "\tret = vfio_register_emulated_iommu_dev(&mdev_state->vdev);\n"

_DELAY = """\
static unsigned int create_delay_ms;
module_param(create_delay_ms, uint, 0644);
MODULE_PARM_DESC(create_delay_ms, "how long a create takes; a smaller value ends running ones");

static int mtty_oops(const char *value, const struct kernel_param *parameter)
{
\tBUG();
}

static const struct kernel_param_ops mtty_oops_ops = {
\t.set = mtty_oops,
};
module_param_cb(oops, &mtty_oops_ops, NULL, 0200);
MODULE_PARM_DESC(oops, "whoever writes to it finds a bug of the driver");

static void mtty_create_delay(void)
{
\tunsigned int slept;

\tfor (slept = 0; slept < READ_ONCE(create_delay_ms); slept += 10)
\t\tmsleep(10);
}

"""


def slowed(source: str) -> str:
    """The driver's source with the delay. Raises BuildError when it is not the source we know."""
    source = _replaced(source, _INCLUDES, _INCLUDES + "#include <linux/delay.h>\n")
    source = _replaced(source, _PROBE, _DELAY + _PROBE)
    return _replaced(source, _REGISTERS, "\tmtty_create_delay();\n\n" + _REGISTERS)


def _replaced(source: str, old: str, new: str) -> str:
    found = source.count(old)
    if found != 1:
        raise BuildError(
            f"this kernel's mtty.c is not as the lab's change expects it: {old.strip()!r} "
            f"is there {found} times, not once"
        )
    return source.replace(old, new)
