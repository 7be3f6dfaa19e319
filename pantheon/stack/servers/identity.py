"""Chooses the identity that Postgres runs under: it refuses uid 0, and its initdb refuses a uid without an account.

Root is the usual user of containers and of CI, often with its project in a folder that no other user may enter
(`/root/project`, mode 0700). Three ways were weighed:
1. Copying programs and data to a reachable folder: data far from its folder, stale copies, a second thing to delete.
2. A user namespace that shows our uid under another number: nothing changes hands, files stay root's. Many containers
   forbid it.
3. Another uid that keeps the capability to pass file permissions: works in those containers, since their root has it;
   the data then belongs to that uid on disk.
So 2 is tried, then 3; data that another uid owns already is run as that uid. The launch script does either.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
from pathlib import Path

from pantheon.stack.errors import StackError
from pantheon.stack.processes.process import KEEP_IDENTITY, Command

_PREFERRED_ACCOUNT = "nobody"


async def choose_identity(data_folder: Path) -> str:
    """Return the launch identity for a Postgres whose data is (or will be) in `data_folder`.

    Raises StackError when this process can take none that Postgres accepts.
    """
    uid = os.geteuid()
    if uid != 0 and _has_account(uid):
        return KEEP_IDENTITY
    shown = _ordinary_uid()
    if uid != 0:
        candidates = [f"namespace:{shown}"]
        problem = f"Postgres needs an account name for uid {uid}: add one to /etc/passwd"
    else:
        owner = _owner(data_folder)
        by_user = f"user:{owner or shown}"
        candidates = [by_user, f"namespace:{shown}"] if owner else [f"namespace:{shown}", by_user]
        problem = "Postgres refuses to run as root, and this root may not change its uid"
    for identity in candidates:
        if await _is_possible(identity):
            return identity
    raise StackError(f"{problem}; or run as an ordinary user")


def own(folder: Path, identity: str) -> None:
    """Change the owner of the data folder to the uid it will be used under, where this process is root."""
    if os.geteuid() != 0:
        return
    kind, _, uid = identity.partition(":")
    # In a namespace our own uid is shown under another number; on disk it is still ours.
    owner = int(uid) if kind == "user" else 0
    if folder.stat().st_uid == owner:
        return
    # The folder itself last: its owner is the sign that everything below has been changed.
    for path in sorted(folder.rglob("*"), reverse=True):
        os.chown(path, owner, owner, follow_symlinks=False)
    os.chown(folder, owner, owner)


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary_uid() -> int:
    accounts = sorted(pwd.getpwall(), key=lambda account: (account.pw_name != _PREFERRED_ACCOUNT, account.pw_uid))
    for account in accounts:
        if account.pw_uid != 0:
            return account.pw_uid
    raise StackError("Postgres needs an account other than root: add one to /etc/passwd")


def _owner(folder: Path) -> int:
    try:
        return folder.stat().st_uid
    except FileNotFoundError:
        return 0


async def _is_possible(identity: str) -> bool:
    command = Command("identity", (sys.executable, "-I", "-S", "-c", "pass"), identity=identity)
    process = await asyncio.create_subprocess_exec(
        *command.launched(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return await process.wait() == 0
    finally:
        # Cancelled because another part of the start failed: the process must not outlive the loop.
        if process.returncode is None:
            process.kill()
            await process.wait()
