"""Becomes PostgreSQL (or initdb): gives up root, asks to be told of the parent's death, and executes it.

A program of its own, run by path with nothing but the standard library, because none of this may happen between
fork and exec in a process with threads. It keeps its process id, so whoever started it has PostgreSQL as a child.

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

# What this program exits with, and its only line of output is the reason, where it could not become PostgreSQL.
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
    """Do as argv says: an order in JSON (parent, uid, gid, death_signal, reach), then the command line."""
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
        # After the change of user, which would clear it again.
        _prctl(_PR_SET_PDEATHSIG, signal.Signals[order["death_signal"]])
    if os.getppid() != order["parent"]:
        _stop("the parent process has ended")
    try:
        os.execv(command[0], command)  # noqa: S606 - becoming another program is what this one is for
    except OSError as error:
        _stop(f"{command[0]} cannot be executed: {error.strerror}")


def _give_up_root(uid: int, gid: int, *, keep_capabilities: bool) -> None:
    if keep_capabilities:
        # Permitted, but no longer in effect: what is needed of them is decided below.
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _first_unreachable(paths: list[str]) -> str | None:
    """Return the outermost directory on the way to one of `paths` that this user may not enter, if there is one."""
    for path in map(Path, paths):
        for directory in (*reversed(path.parents), path):
            try:
                # A directory's own entry "." is found only by who may enter it; pathlib would drop the dot.
                os.stat(f"{directory}/.")  # noqa: PTH116
            except PermissionError:
                return str(directory)
            except OSError:
                # A file, at the end of its path, or what is not there yet.
                break
    return None


def _keep_one_capability(needed: bool) -> bool:
    """Drop every capability, except that of walking through closed directories where that is `needed`.

    It is kept across exec as an ambient capability: PostgreSQL can then reach a cluster below, say, a root's home
    that nobody else may enter. Returns whether it was needed and could be kept; a container may have lost it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    kept = 1 << _CAP_DAC_READ_SEARCH if needed else 0
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable for capabilities 0 to 31, then the same for those above.
    wanted = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    if libc.capset(header, wanted) != 0:
        libc.capset(header, (ctypes.c_uint32 * 6)())
        return False
    return needed and _try_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)


def _try_prctl(option: int, value: int, detail: int = 0) -> bool:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # The kernel refuses an option whose unused arguments are not wholly zero.
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
