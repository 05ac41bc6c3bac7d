"""The rows: what the kernel was measured to do, and what the bus makes of it."""

from __future__ import annotations

from .vocabulary import (
    EVERYTHING,
    NOTHING,
    Attribute,
    BeginCreate,
    BeginOrder,
    BeginRemove,
    BeginUnload,
    BusRemove,
    Busy,
    ByKernel,
    Create,
    Employ,
    Ends,
    Events,
    Fill,
    Finish,
    Hints,
    Hold,
    HoldGroup,
    InFlight,
    KillWorkers,
    Left,
    LetGo,
    Listen,
    Load,
    Now,
    OpenCreate,
    OpenGroup,
    OpenRemove,
    Order,
    Parents,
    Race,
    Remove,
    Row,
    Scan,
    Section,
    Shows,
    Slow,
    Types,
    Unload,
    Unprivileged,
    Watch,
    Write,
)

__all__ = ["ROWS", "SECTIONS"]

A = "11111111-2222-4333-8444-5555555555a1"
B = "11111111-2222-4333-8444-5555555555a2"
NIL = "00000000-0000-0000-0000-000000000000"
FULL = "ffffffff-ffff-ffff-ffff-ffffffffffff"


def _refused(id_: str, claim: str, text: str) -> Row:
    steps = (Create("mtty-1", text, "EINVAL"), Left("mtty-1", 24), Scan(A, "absent"))
    return Row(f"create-{id_}", claim, steps)


_CREATE = (
    Row(
        "create",
        "36 characters make a device; the write returns their count.",
        (
            Create("mtty-1", A),
            Shows("mtty-1", A, EVERYTHING),
            Left("mtty-1", 23),
            Scan(A, "present mtty-1 on mtty"),
        ),
    ),
    Row(
        "create-newline",
        "A newline after the name is taken, and counted.",
        (Create("mtty-1", f"{A}\n", 37), Shows("mtty-1", A, EVERYTHING)),
    ),
    Row(
        "create-37th",
        "Whatever the 37th byte is, nobody looks at it.",
        (
            Create("mtty-1", f"{A}x", 37),
            Shows("mtty-1", A, EVERYTHING),
            Create("mtty-1", A, "EEXIST"),
        ),
    ),
    Row(
        "create-37th-nul",
        "Not even a NUL there is refused.",
        (Create("mtty-1", f"{A}\0", 37), Shows("mtty-1", A, EVERYTHING)),
    ),
    Row(
        "create-upper-case",
        "Upper and mixed case are folded; no path has the upper-case name.",
        (
            Create("mtty-1", A.upper()),
            Shows("mtty-1", A, EVERYTHING),
            Shows("mtty-1", A.upper(), NOTHING),
            Create("mdpy-hd", A, "EEXIST"),
            Create("mdpy-hd", A[:-2] + "A1", "EEXIST"),
            Remove(A.upper(), "ENOENT"),
        ),
    ),
    Row(
        "create-nil",
        "The kernel takes the nil UUID; for the bus it is no name.",
        (Create("mtty-1", NIL), Shows("mtty-1", NIL, EVERYTHING), Scan(NIL, "absent")),
    ),
    Row(
        "create-all-f",
        "The UUID of all ones is a name as any other.",
        (Create("mtty-1", FULL), Scan(FULL, "present mtty-1 on mtty")),
    ),
    Row(
        "create-nothing",
        "Zero bytes do nothing.",
        (Create("mtty-1", "", 0), Left("mtty-1", 24)),
    ),
    _refused("short", "35 characters are refused.", A[:35]),
    _refused("long", "38 characters are refused.", f"{A}ab"),
    _refused("crlf", "CRLF at the end is refused.", f"{A}\r\n"),
    _refused("braces", "Braces around the name are refused.", f"{{{A}}}"),
    _refused("no-hyphens", "32 hexadecimal digits are refused.", A.replace("-", "")),
    _refused("space", "A leading space is refused.", f" {A}"),
    _refused("not-hex", "What is not hexadecimal is refused.", f"g{A[1:]}"),
    _refused("hyphen", "A hyphen out of place is refused.", "1111111-12222-4333-8444-5555555555a1"),
    _refused("word", "A word is refused.", "gpu"),
    Row(
        "create-unknown-type",
        "A type that the parent does not have has no file.",
        (Create("mtty-9", A, "ENOENT"),),
    ),
    Row(
        "create-unknown-parent",
        "Nor has a parent that is not there.",
        (Create("nobody-1", A, "ENOENT"),),
    ),
    Row(
        "create-unprivileged",
        "Only root may write.",
        (Unprivileged(Create("mtty-1", A), "EACCES"), Scan(A, "absent")),
    ),
    Row(
        "create-race",
        "Of eight threads that create one name one makes it.",
        (Race("mtty-1", A, 8, ["1 x 36", "7 x EEXIST"]), Left("mtty-1", 23)),
    ),
)

_DUPLICATES = (
    Row(
        "duplicate-type",
        "A name that lives is taken: for its own type.",
        (Create("mtty-1", A), Create("mtty-1", A, "EEXIST"), Left("mtty-1", 23)),
    ),
    Row(
        "duplicate-other-type",
        "For another type of its parent, which loses nothing.",
        (Create("mtty-1", A), Create("mtty-2", A, "EEXIST"), Left("mtty-2", 11)),
    ),
    Row(
        "duplicate-other-parent",
        "For a type of another parent.",
        (
            Create("mtty-1", A),
            Create("mdpy-hd", A, "EEXIST"),
            Create("mbochs-small", A, "EEXIST"),
            Left("mdpy-hd", 4),
            Left("mbochs-small", 64),
            Scan(A, "present mtty-1 on mtty"),
        ),
    ),
    Row(
        "duplicate-exhausted-driver",
        "Also where nothing is left: the name is looked at first (the driver counts).",
        (Create("mdpy-hd", A), Fill("mtty-1", 24), Create("mtty-1", A, "EEXIST")),
    ),
    Row(
        "duplicate-exhausted-core",
        "The same where the mdev core counts.",
        (Create("mtty-1", A), Fill("mdpy-hd", 4), Create("mdpy-hd", A, "EEXIST")),
    ),
    Row(
        "duplicate-own-exhausted",
        "And of the device that took the last instance itself.",
        (Fill("mdpy-hd", 3, leaving=1), Create("mdpy-hd", A), Create("mdpy-hd", A, "EEXIST")),
    ),
)

_CAPACITY = (
    Row(
        "pool-mtty",
        "mtty's two types have one pool: a dual port costs two single ones.",
        (
            Left("mtty-1", 24),
            Left("mtty-2", 12),
            Create("mtty-2", A),
            Left("mtty-1", 22),
            Left("mtty-2", 11),
            Create("mtty-1", B),
            Left("mtty-1", 21),
            Left("mtty-2", 10),
            Remove(A),
            Left("mtty-1", 23),
            Left("mtty-2", 11),
        ),
    ),
    Row(
        "pool-mdpy",
        "mdpy's three types have one pool of four.",
        (
            Left("mdpy-hd", 4),
            Left("mdpy-vga", 4),
            Create("mdpy-vga", A),
            Left("mdpy-hd", 3),
            Left("mdpy-xga", 3),
            Left("mdpy-vga", 3),
        ),
    ),
    Row(
        "pool-mbochs",
        "mbochs' three types have one pool of memory.",
        (
            Left("mbochs-small", 64),
            Left("mbochs-medium", 16),
            Left("mbochs-large", 4),
            Create("mbochs-large", A),
            Left("mbochs-small", 48),
            Left("mbochs-medium", 12),
            Left("mbochs-large", 3),
            Create("mbochs-small", B),
            Left("mbochs-small", 47),
            Left("mbochs-medium", 11),
            Left("mbochs-large", 2),
        ),
    ),
    Row(
        "exhausted-mtty",
        "An exhausted driver that counts says ENOSPC, and nothing of the name stays.",
        (
            Fill("mtty-1", 24),
            Create("mtty-1", A, "ENOSPC"),
            Create("mtty-2", A, "ENOSPC"),
            Shows("mtty-1", A, NOTHING),
            Create("mdpy-hd", A),
        ),
    ),
    Row(
        "exhausted-half",
        "With one port left there is no dual port to be had, but a single one.",
        (
            Fill("mtty-1", 23, leaving=1),
            Left("mtty-2", 0),
            Create("mtty-2", A, "ENOSPC"),
            Create("mtty-1", A),
        ),
    ),
    Row(
        "exhausted-mbochs",
        "The same for memory: after 64 small ones not even a small one.",
        (Fill("mbochs-small", 64), Create("mbochs-small", A, "ENOSPC"), Scan(A, "absent")),
    ),
    Row(
        "exhausted-mbochs-large",
        "With less memory than a large one needs left, small ones go on.",
        (
            Fill("mbochs-large", 3, leaving=1),
            Create("mbochs-small", A),
            Left("mbochs-large", 0),
            Create("mbochs-large", B, "ENOSPC"),
            Create("mbochs-small", B),
        ),
    ),
    Row(
        "exhausted-mdpy",
        "Where the mdev core counts it says EUSERS, for all of the parent's types.",
        (
            Fill("mdpy-vga", 4),
            Create("mdpy-vga", A, "EUSERS"),
            Create("mdpy-hd", A, "EUSERS"),
            Shows("mdpy-hd", A, NOTHING),
            Create("mtty-1", A),
        ),
    ),
    Row(
        "exhausted-and-removed",
        "A remove gives its instance back.",
        (
            Fill("mdpy-hd", 3, leaving=1),
            Create("mdpy-hd", A),
            Create("mdpy-hd", B, "EUSERS"),
            Remove(A),
            Create("mdpy-hd", B),
        ),
    ),
    Row(
        "types",
        "A parent's types tell what is available, the device API and perhaps a name.",
        (
            Create("mtty-2", A),
            Types(
                "mtty",
                [
                    "mtty-1 22 vfio-pci Single port serial",
                    "mtty-2 11 vfio-pci Dual port serial",
                ],
            ),
        ),
    ),
)


def _removes(id_: str, claim: str, text: str) -> Row:
    steps = (
        Create("mtty-1", A),
        Remove(A, len(text), text),
        Shows("mtty-1", A, NOTHING),
        Left("mtty-1", 24),
        Create("mdpy-hd", A),
    )
    return Row(f"remove-{id_}", claim, steps)


def _removes_not(id_: str, claim: str, text: str, answer: int | str = "EINVAL") -> Row:
    steps = (
        Create("mtty-1", A),
        Remove(A, answer, text),
        Shows("mtty-1", A, EVERYTHING),
        Remove(A),
    )
    return Row(f"remove-{id_}", claim, steps)


_REMOVE = (
    _removes("1", "`1` removes, and gives name and instance back.", "1"),
    _removes("newline", "So does `1` with a newline.", "1\n"),
    _removes("2", "Any other number does.", "2"),
    _removes("hex", "In hexadecimal, too.", "0x1"),
    _removes("plus", "Or with a sign.", "+3"),
    _removes_not("0", "`0` does nothing, and the device can be removed afterwards.", "0", 1),
    _removes_not("nothing", "So do zero bytes.", "", 0),
    _removes_not("word", "What is no number is refused.", "abc"),
    _removes_not("negative", "A negative one is.", "-1"),
    _removes_not("space", "A leading space is.", " 1"),
    _removes_not("trailing-space", "A trailing one is.", "1 "),
    _removes_not("octal", "What is no octal number after a 0 is.", "08"),
    _removes_not("huge", "A number that no register holds is.", "9" * 21),
    Row(
        "remove-again",
        "What was removed has no file.",
        (Create("mtty-1", A), Remove(A), Remove(A, "ENOENT")),
    ),
    Row(
        "remove-again-open",
        "Through a descriptor from before the answer is another.",
        (Create("mtty-1", A), OpenRemove(A), Remove(A), Write(A, "1", "ENODEV")),
    ),
    Row(
        "remove-namesake",
        "And that descriptor never reaches a later device of the name.",
        (
            Create("mtty-1", A),
            OpenRemove(A),
            Remove(A),
            Create("mtty-1", A),
            Write(A, "1", "ENODEV"),
            Shows("mtty-1", A, EVERYTHING),
        ),
    ),
    Row("remove-unknown", "What never was has no file.", (Remove(A, "ENOENT"),)),
    Row(
        "remove-unprivileged",
        "Only root may.",
        (Create("mtty-1", A), Unprivileged(Remove(A), "EACCES"), Shows("mtty-1", A, EVERYTHING)),
    ),
    Row(
        "bus-remove",
        "The bus removes what is still of the type that was seen.",
        (
            Create("mtty-1", A),
            BusRemove(A, "mtty-2", "ESTALE"),
            Scan(A, "present mtty-1 on mtty"),
            BusRemove(A, "mtty-1", "done"),
            BusRemove(A, "mtty-1", "ENOENT"),
        ),
    ),
)

_PLACEHOLDERS = (
    Row(
        "slow-create",
        "While the driver is at it the device is on the bus, counted, and has no type yet.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            Shows("mtty-1", A, "bus directory remove"),
            Scan(A, "unknown (no type) on mtty"),
            Left("mtty-1", 23),
            Now(A),
            Finish(A),
            Ends(A, 36),
            Shows("mtty-1", A, EVERYTHING),
            Scan(A, "present mtty-1 on mtty"),
        ),
    ),
    Row(
        "slow-create-duplicate",
        "Its name is taken already, on every parent.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            Create("mtty-1", A, "EEXIST"),
            Create("mtty-2", A, "EEXIST"),
            Create("mdpy-hd", A, "EEXIST"),
            Now(A),
            Finish(A),
            Ends(A, 36),
        ),
    ),
    Row(
        "slow-create-others",
        "Nobody waits for it: others are made and removed meanwhile.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            Create("mdpy-hd", B),
            Remove(B),
            Create("mbochs-small", B),
            Now(A),
            Finish(A),
            Ends(A, 36),
        ),
    ),
    Row(
        "early-remove",
        "A remove before the create has returned is EAGAIN, and costs the device for good.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            Remove(A, "EAGAIN"),
            Shows("mtty-1", A, "bus directory"),
            Remove(A, "ENOENT"),
            Now(A),
            Finish(A),
            Ends(A, 36),
            Shows("mtty-1", A, "bus type listed directory"),
            Scan(A, "present mtty-1 on mtty"),
            Remove(A, "ENOENT"),
            Create("mtty-1", A, "EEXIST"),
            Create("mdpy-hd", A, "EEXIST"),
            Left("mtty-1", 23),
        ),
    ),
    Row(
        "early-remove-again",
        "A second remove through a descriptor from before says ENODEV.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            OpenRemove(A),
            Remove(A, "EAGAIN"),
            Write(A, "1", "ENODEV"),
            Finish(A),
            Ends(A, 36),
        ),
    ),
    Row(
        "early-remove-unload",
        "Only the driver's unload frees what was lost so.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            Remove(A, "EAGAIN"),
            Finish(A),
            Ends(A, 36),
            Unload("mtty"),
            Scan(A, "absent"),
            Load("mtty"),
            Left("mtty-1", 24),
            Create("mtty-1", A),
        ),
    ),
    Row(
        "early-remove-zero",
        "A `0` written early costs nothing.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            Remove(A, 1, "0"),
            Finish(A),
            Ends(A, 36),
            Remove(A),
            Scan(A, "absent"),
        ),
    ),
    Row(
        "early-bus-remove",
        "The bus writes no remove before the type can be read.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            BusRemove(A, "mtty-1", "EAGAIN"),
            Shows("mtty-1", A, "bus directory remove"),
            Finish(A),
            Ends(A, 36),
            BusRemove(A, "mtty-1", "done"),
        ),
    ),
)

_BLOCKED = (
    Row(
        "held-remove",
        "A remove of a device that a VM has sleeps until the VM lets go.",
        (
            Create("mtty-1", A),
            Hold(A),
            BeginRemove("mtty-1", A),
            Now(A),
            LetGo(A),
            Ends(A, 1),
            Shows("mtty-1", A, NOTHING),
            Scan(A, "absent"),
            Left("mtty-1", 24),
        ),
    ),
    Row(
        "held-links",
        "Meanwhile its links are gone, its directory under the parent is not, and it is counted.",
        (
            Create("mtty-1", A),
            Hold(A),
            BeginRemove("mtty-1", A),
            Shows("mtty-1", A, "directory"),
            Scan(A, "going (no type) on mtty"),
            Left("mtty-1", 23),
            Remove(A, "ENOENT"),
            BusRemove(A, "mtty-1", "ENOENT"),
            Now(A),
            LetGo(A),
            Ends(A, 1),
        ),
    ),
    Row(
        "held-name",
        "Its name is held though its links are gone, on every parent, until it is really gone.",
        (
            Create("mtty-1", A),
            Hold(A),
            BeginRemove("mtty-1", A),
            Create("mtty-1", A, "EEXIST"),
            Create("mtty-2", A, "EEXIST"),
            Create("mdpy-hd", A, "EEXIST"),
            Now(A),
            LetGo(A),
            Ends(A, 1),
            Create("mdpy-hd", A),
            Scan(A, "present mdpy-hd on mdpy"),
        ),
    ),
    Row(
        "held-others",
        "Others of that parent are made and removed meanwhile.",
        (
            Create("mtty-1", A),
            Hold(A),
            BeginRemove("mtty-1", A),
            Create("mtty-1", B),
            Left("mtty-1", 22),
            Remove(B),
            Create("mtty-2", B),
            Now(A),
            LetGo(A),
            Ends(A, 1),
            Left("mtty-1", 22),
        ),
    ),
    Row(
        "held-exhausted",
        "The instance that it takes is not to be had before.",
        (
            Fill("mtty-1", 23, leaving=1),
            Create("mtty-1", A),
            Hold(A),
            BeginRemove("mtty-1", A),
            Create("mtty-1", B, "ENOSPC"),
            LetGo(A),
            Ends(A, 1),
            Create("mtty-1", B),
        ),
    ),
    Row(
        "held-core-counts",
        "The same where the mdev core counts.",
        (
            Fill("mdpy-hd", 3, leaving=1),
            Create("mdpy-hd", A),
            Hold(A),
            BeginRemove("mdpy-hd", A),
            Create("mdpy-hd", B, "EUSERS"),
            LetGo(A),
            Ends(A, 1),
            Create("mdpy-hd", B),
        ),
    ),
    Row(
        "held-second-remove",
        "A second remove through a descriptor from before does not sleep.",
        (
            Create("mtty-1", A),
            OpenRemove(A),
            Hold(A),
            BeginRemove("mtty-1", A),
            Write(A, "1", "ENODEV"),
            Now(A),
            LetGo(A),
            Ends(A, 1),
        ),
    ),
    Row(
        "held-busy",
        "Before it is asked for, the bus finds that it would sleep.",
        (
            Create("mtty-1", A),
            Busy(A, "free"),
            OpenGroup(A, "done"),
            Hold(A),
            Busy(A, "busy"),
            OpenGroup(A, "EBUSY"),
            LetGo(A),
            Busy(A, "free"),
            BusRemove(A, "mtty-1", "done"),
        ),
    ),
    Row(
        "held-group",
        "An open group alone looks the same, but no remove waits for it.",
        (
            Create("mtty-1", A),
            HoldGroup(A),
            OpenGroup(A, "EBUSY"),
            Busy(A, "busy"),
            Remove(A),
            Shows("mtty-1", A, NOTHING),
            Left("mtty-1", 24),
        ),
    ),
)

_PARENTS = (
    Row(
        "parents",
        "The parents are those with a driver.",
        (Parents(["mbochs", "mdpy", "mtty"]), Unload("mdpy"), Parents(["mbochs", "mtty"])),
    ),
    Row(
        "parent-late",
        "A parent that comes after the bus was opened is met by the next scan, and works.",
        (
            Unload("mdpy"),
            Parents(["mbochs", "mtty"]),
            Create("mdpy-hd", A, "ENOENT"),
            Load("mdpy"),
            Parents(["mbochs", "mdpy", "mtty"]),
            Create("mdpy-hd", A),
            Scan(A, "present mdpy-hd on mdpy"),
        ),
    ),
    Row(
        "parent-unload",
        "A driver takes its devices along, and no others.",
        (
            Create("mdpy-hd", A),
            Create("mtty-1", B),
            Unload("mdpy"),
            Shows("mdpy-hd", A, NOTHING),
            Scan(A, "absent"),
            Scan(B, "present mtty-1 on mtty"),
            Create("mdpy-hd", A, "ENOENT"),
            Create("mtty-1", A),
        ),
    ),
    Row(
        "parent-unload-open",
        "A create through a descriptor from before says ENODEV, without its driver …",
        (
            OpenCreate("mdpy-hd"),
            Unload("mdpy"),
            Write("mdpy-hd", A, "ENODEV"),
            Scan(A, "absent"),
        ),
    ),
    Row(
        "parent-reload-open",
        "… and with the driver of another load.",
        (
            OpenCreate("mdpy-hd"),
            Unload("mdpy"),
            Load("mdpy"),
            Write("mdpy-hd", A, "ENODEV"),
            Scan(A, "absent"),
            Create("mdpy-hd", A),
        ),
    ),
    Row(
        "parent-unload-remove",
        "A remove through a descriptor from before says ENODEV, too.",
        (Create("mdpy-hd", A), OpenRemove(A), Unload("mdpy"), Write(A, "1", "ENODEV")),
    ),
    Row(
        "parent-unload-slow",
        "An unload waits for the creates that are under way, and takes their devices.",
        (
            Slow("mtty"),
            BeginCreate("mtty-1", A),
            OpenCreate("mtty-2"),
            BeginUnload("mtty"),
            Write("mtty-2", B, "ENODEV"),
            Create("mtty-2", B, "ENODEV"),
            Create("mtty-2", A, "EEXIST"),
            Parents(["mbochs", "mdpy", "mtty"]),
            Shows("mtty-1", A, "bus directory remove"),
            Now("mtty"),
            Finish(A),
            Ends(A, 36),
            Ends("mtty", "done"),
            Scan(A, "absent"),
            Parents(["mbochs", "mdpy"]),
        ),
    ),
    Row(
        "parent-reload",
        "After another load all is available again.",
        (
            Create("mdpy-hd", A),
            Unload("mdpy"),
            Load("mdpy"),
            Left("mdpy-hd", 4),
            Scan(A, "absent"),
            Create("mdpy-vga", A),
        ),
    ),
)

_EVENTS = (
    Row(
        "events",
        "A create is told by add and bind, a remove by unbind and remove.",
        (
            Listen(),
            Create("mtty-1", A),
            Events([f"add {A}", f"bind {A}"]),
            Remove(A),
            Events([f"unbind {A}", f"remove {A}"]),
        ),
    ),
    Row(
        "events-slow",
        "The add comes before the driver is done, so it proves nothing.",
        (
            Slow("mtty"),
            Listen(),
            BeginCreate("mtty-1", A),
            Events([f"add {A}"]),
            Finish(A),
            Ends(A, 36),
            Events([f"bind {A}"]),
        ),
    ),
    Row(
        "events-exhausted-driver",
        "A create that the driver refuses is told by add and remove, without bind.",
        (
            Fill("mtty-1", 24),
            Listen(),
            Create("mtty-1", A, "ENOSPC"),
            Events([f"add {A}", f"remove {A}"]),
        ),
    ),
    Row(
        "events-exhausted-core",
        "One that the mdev core refuses is not told.",
        (Fill("mdpy-hd", 4), Listen(), Create("mdpy-hd", A, "EUSERS"), Events([])),
    ),
    Row(
        "events-duplicate",
        "Nor is one of a name that is taken.",
        (
            Create("mtty-1", A),
            Listen(),
            Create("mtty-1", A, "EEXIST"),
            Create("mdpy-hd", A, "EEXIST"),
            Events([]),
        ),
    ),
    Row(
        "events-held",
        "While a remove sleeps nothing is told of the device; at its end all is.",
        (
            Create("mtty-1", A),
            Hold(A),
            Listen(),
            BeginRemove("mtty-1", A),
            Events([]),
            LetGo(A),
            Ends(A, 1),
            Events([f"unbind {A}", f"remove {A}"]),
        ),
    ),
    Row(
        "events-held-vfio",
        "Only vfio's own part of it may go at once.",
        (
            Create("mtty-1", A),
            Hold(A),
            Listen(),
            BeginRemove("mtty-1", A),
            Events(ByKernel([], {"6.12": [f"remove of {A}"]}), of="vfio-dev"),
            LetGo(A),
            Ends(A, 1),
        ),
    ),
    Row(
        "events-early-remove",
        "A remove that came too early is not told.",
        (
            Slow("mtty"),
            Listen(),
            BeginCreate("mtty-1", A),
            Events([f"add {A}"]),
            Remove(A, "EAGAIN"),
            Events([]),
            Finish(A),
            Ends(A, 36),
            Events([f"bind {A}"]),
        ),
    ),
    Row(
        "events-parent",
        "A parent that goes and comes tells so, and each of its devices that it is gone.",
        (
            Create("mdpy-hd", A),
            Listen(),
            Unload("mdpy"),
            Events([f"unbind {A}", f"remove {A}", "unregistered mdpy"]),
            Load("mdpy"),
            Events(["registered mdpy"]),
        ),
    ),
    Row(
        "events-parent-slow",
        "Of a device that is being made when its driver is unloaded all is told.",
        (
            Slow("mtty"),
            Listen(),
            BeginCreate("mtty-1", A),
            BeginUnload("mtty"),
            Events([f"add {A}"]),
            Finish(A),
            Ends("mtty", "done"),
            Events([f"bind {A}", f"unbind {A}", f"remove {A}", "unregistered mtty"]),
        ),
    ),
    Row(
        "hints",
        "The bus's hints name what came and what went.",
        (
            Watch(),
            Create("mtty-1", A),
            Hints([A]),
            Create("mdpy-hd", B),
            Remove(A),
            Hints([A, B]),
        ),
    ),
    Row(
        "hints-refused",
        "They name a phantom, too.",
        (Fill("mtty-1", 24), Watch(), Create("mtty-1", A, "ENOSPC"), Hints([A])),
    ),
    Row(
        "hints-parent",
        "A parent that comes or goes names nobody: look everywhere.",
        (Watch(), Unload("mdpy"), Hints("nobody"), Load("mdpy"), Hints("nobody")),
    ),
)

_ATTRIBUTES = (
    Row(
        "attribute-read-only",
        "An attribute that cannot be written is refused, to root as well.",
        (Create("mtty-1", A), Attribute(A, "vendor/sample_mdev_dev", "1", "EACCES")),
    ),
    Row(
        "attribute-unknown",
        "One that is not there is not made.",
        (Create("mtty-1", A), Attribute(A, "no_such", "1", "ENOENT")),
    ),
    Row(
        "attribute-remove",
        "What is no attribute is not written: `remove`, and what leads out of the device.",
        (
            Create("mtty-1", A),
            Attribute(A, "remove", "1", "EPERM"),
            Attribute(A, "mdev_type/create", B, "EPERM"),
            Scan(A, "present mtty-1 on mtty"),
            Scan(B, "absent"),
        ),
    ),
)

_WORKERS = (
    Row(
        "worker",
        "A worker does what it is ordered, and says so.",
        (
            Employ(),
            Order("create", "mtty-1", A),
            Scan(A, "present mtty-1 on mtty"),
            InFlight([]),
            Order("remove", "mtty-1", A),
            Scan(A, "absent"),
        ),
    ),
    Row(
        "worker-refused",
        "Or what the kernel said.",
        (
            Fill("mdpy-hd", 4),
            Create("mtty-1", A),
            Employ(),
            Order("create", "mtty-1", A, "EEXIST"),
            Order("create", "mdpy-hd", B, "EUSERS"),
            Order("create", "mtty-9", B, "ENOENT"),
            Order("remove", "mtty-2", A, "ESTALE"),
            Order("remove", "mtty-1", B, "ENOENT"),
        ),
    ),
    Row(
        "worker-killed-create",
        "Killed in a create it is in flight until the driver is done, and its device is made.",
        (
            Slow("mtty"),
            Employ(),
            BeginOrder("create", "mtty-1", A),
            InFlight([A]),
            KillWorkers(),
            Order("create", "mdpy-hd", B),
            InFlight([A]),
            Finish(A),
            Ends(A, "not known: worker died"),
            InFlight([]),
            Scan(A, "present mtty-1 on mtty"),
        ),
    ),
    Row(
        "worker-killed-remove",
        "Killed in a remove it is in flight until the VM lets go, and its device is gone.",
        (
            Create("mtty-1", A),
            Hold(A),
            Employ(),
            BeginOrder("remove", "mtty-1", A),
            KillWorkers(),
            Order("create", "mtty-1", B),
            InFlight([A]),
            LetGo(A),
            Ends(A, "not known: worker died"),
            InFlight([]),
            Scan(A, "absent"),
        ),
    ),
    Row(
        "worker-beside",
        "While one sleeps in a remove, others write to that parent.",
        (
            Create("mtty-1", A),
            Hold(A),
            Employ(),
            BeginOrder("remove", "mtty-1", A),
            Order("remove", "mtty-1", A, "not begun: in flight"),
            Order("create", "mtty-1", B),
            Order("remove", "mtty-1", B),
            InFlight([A]),
            LetGo(A),
            Ends(A, "done"),
            InFlight([]),
        ),
    ),
)

SECTIONS = (
    Section("Create", _CREATE),
    Section("Duplicates", _DUPLICATES),
    Section("Capacity", _CAPACITY),
    Section("Remove", _REMOVE),
    Section("A placeholder is not a device", _PLACEHOLDERS),
    Section("A remove that sleeps", _BLOCKED),
    Section("Parents come and go", _PARENTS),
    Section("Events", _EVENTS),
    Section("Attributes", _ATTRIBUTES),
    Section("Workers", _WORKERS),
)
ROWS = tuple(row for section in SECTIONS for row in section.rows)
