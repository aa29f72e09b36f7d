"""A launcher that becomes PostgreSQL or initdb: it drops root, asks for a signal at its parent's death, and calls exec.

It is a program of its own, run by its path with only the standard library, because a process with threads must do none
of this between fork and exec. It keeps its process id, so that its parent has PostgreSQL as a child.

    python -I -S launch.py '{"parent": 1, "uid": null, …}' /path/to/postgres -D …
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

# The exit code where it could not become PostgreSQL; its only line of output is the reason.
GAVE_UP: Final = 77

# From <linux/prctl.h> and <linux/capability.h>, which Python does not wrap.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAP_DAC_READ_SEARCH: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522


def main() -> NoReturn:
    """Follow argv: an order in JSON (parent, uid, gid, death_signal, reach), and then the command line."""
    order: dict[str, Any] = json.loads(sys.argv[1])
    command = sys.argv[2:]
    linux = sys.platform == "linux"
    if order["uid"] is not None:
        _give_up_root(order["uid"], order["gid"], keep_capabilities=linux)
        blocked = _first_unreachable(order["reach"])
        if linux and _keep_one_capability(blocked is not None):
            blocked = _first_unreachable(order["reach"])
        if blocked is not None:
            _stop(f"the user with id {order['uid']} has no access to the directory {blocked}")
    if linux:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        # After the change of user, which clears it.
        _prctl(_PR_SET_PDEATHSIG, signal.Signals[order["death_signal"]])
    if os.getppid() != order["parent"]:
        _stop("the parent process has ended")
    try:
        os.execv(command[0], command)  # noqa: S606 - this program is there to become another
    except OSError as error:
        _stop(f"{command[0]} cannot be executed: {error.strerror}")


def _give_up_root(uid: int, gid: int, *, keep_capabilities: bool) -> None:
    if keep_capabilities:
        # They stay permitted, but are not in effect. `_keep_one_capability` decides which one is needed.
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _first_unreachable(paths: list[str]) -> str | None:
    """Return the outermost directory above one of `paths` that this user cannot enter; None if there is none."""
    for path in map(Path, paths):
        for directory in (*reversed(path.parents), path):
            try:
                # A directory's own entry "." is found only by a user who can enter it; pathlib would drop the dot.
                os.stat(f"{directory}/.")  # noqa: PTH116
            except PermissionError:
                return str(directory)
            except OSError:
                # A file at the end of a path, or something that does not exist yet.
                break
    return None


def _keep_one_capability(needed: bool) -> bool:
    """Drop every capability, except that of passing through closed directories where that is `needed`.

    As an ambient capability it is kept across exec. So PostgreSQL can reach a cluster below root's home, for example.
    Returns whether it was needed and could be kept; in a container it may be missing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    kept = 1 << _CAP_DAC_READ_SEARCH if needed else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, for capabilities 0 to 31 and then for those above.
    wanted = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    if libc.capset(header, wanted) != 0:
        libc.capset(header, (ctypes.c_uint32 * 6)())
        return False
    return needed and _try_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)


def _try_prctl(option: int, value: int, detail: int = 0) -> bool:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # The kernel refuses an option unless its unused arguments are all zero.
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return bool(prctl(option, value, detail, 0, 0) == 0)


def _prctl(option: int, value: int) -> None:
    if not _try_prctl(option, value):
        _stop(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def _stop(reason: str) -> NoReturn:
    sys.stderr.write(f"{reason}\n")
    sys.stderr.flush()
    os._exit(GAVE_UP)


if __name__ == "__main__":
    main()
