"""Run a command under a unit's SystemCallFilter and MemoryDenyWriteExecute, without systemd: confine.py UNIT COMMAND...

    unit -> `systemd-analyze syscall-filter` for the groups -> libseccomp, PR_SET_MDWE -> exec

Exit code 77: this machine lacks systemd-analyze, libseccomp or the kernel's rule (Linux 6.3).
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
CANNOT = 77


def allowed_calls(unit: str) -> set[str]:
    """Names of the system calls that the unit's SystemCallFilter lines leave."""
    allowed: set[str] = set()
    for line in unit.splitlines():
        name, _, value = line.partition("=")
        if name != "SystemCallFilter":
            continue
        calls = {call for word in value.removeprefix("~").split() for call in _members(word)}
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    return allowed


def _members(name: str) -> set[str]:
    """A call, or all calls of an @group."""
    if not name.startswith("@"):
        return {name}
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True
    ).stdout
    words = [line.strip() for line in listing.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for word in words for call in _members(word)}


def confine(calls: set[str], deny_write_execute: bool) -> None:
    """Leave this process, for good, only these calls, and no memory that is both writable and executable."""
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(REFUSE))
    for call in calls:
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:
            seccomp.seccomp_rule_add(context, ALLOW, number, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if deny_write_execute and libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_MDWE")
    if seccomp.seccomp_load(context):
        raise OSError("seccomp_load")


def main() -> None:
    """Confine, then become the command."""
    try:
        unit = Path(sys.argv[1]).read_text()
        settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
        confine(allowed_calls(unit), settings.get("MemoryDenyWriteExecute") == "yes")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"cannot confine here: {error}", file=sys.stderr)
        sys.exit(CANNOT)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
