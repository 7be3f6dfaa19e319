"""Becomes a child of the stack: ties its life to the supervisor's, gives up root where asked, then runs the program.

Run as a script by its path (`python -I -S launch.py PARENT_PID DEATH_SIGNAL IDENTITY PROGRAM [ARGUMENT...]`), never
imported by the supervisor: what is done here between fork and exec would be unsafe in a `preexec_fn` beside threads,
and a script of the standard library alone starts in a few milliseconds. The process id stays the same through exec.

IDENTITY is `keep`, or one of two ways to satisfy Postgres, which refuses to run as uid 0 and (initdb) as a uid
without an account:
- `namespace:UID`: a user namespace in which the caller's uid is shown as UID. Nothing on disk changes hands.
- `user:UID`: UID itself, with the one capability to pass file permissions kept, so that a program and data below a
  folder that only root may enter (`/root/project`) are reached without opening that folder to other users.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# Exit statuses as shells and `env` use them, unlike a program's own.
IDENTITY_FAILED_STATUS = 125
NOT_RUNNABLE_STATUS = 127

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _check(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def _enter_namespace(libc: ctypes.CDLL, shown_uid: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _check(libc.unshare(_CLONE_NEWUSER), "unshare")
    # Without this the kernel does not let an unprivileged process write its gid_map.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{shown_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{shown_uid} {gid} 1")


def _become_user(libc: ctypes.CDLL, uid: int) -> None:
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl(PR_SET_KEEPCAPS)")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    bit = 1 << _CAP_DAC_OVERRIDE
    data = (_CapabilityData * 2)(_CapabilityData(bit, bit, bit), _CapabilityData(0, 0, 0))
    _check(libc.capset(ctypes.byref(header), data), "capset")
    _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0), "prctl(PR_CAP_AMBIENT)")


def _take_identity(libc: ctypes.CDLL, identity: str) -> None:
    kind, _, uid = identity.partition(":")
    if kind == "namespace":
        _enter_namespace(libc, int(uid))
    elif kind == "user":
        _become_user(libc, int(uid))
    elif kind != "keep":
        raise ValueError(f"unknown identity {identity!r}")


def main(arguments: list[str]) -> int:
    """Run the program in place of this process; return an exit status only when that is not possible."""
    parent_pid, death_signal, identity, *program = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            _take_identity(libc, identity)
            # After the identity: a change of credentials clears it. Exec keeps it.
            _check(libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
        except (OSError, ValueError) as error:
            sys.stderr.write(f"launch: {error}\n")
            return IDENTITY_FAILED_STATUS
        # The supervisor may have died before the line above took effect; then no signal comes.
        if os.getppid() != int(parent_pid):
            return NOT_RUNNABLE_STATUS
    try:
        os.execvp(program[0], program)  # noqa: S606 - to become the program is the purpose
    except OSError as error:
        sys.stderr.write(f"launch: cannot run {program[0]}: {error.strerror}\n")
        return NOT_RUNNABLE_STATUS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
