"""The system-call filter of answers and machines: a deny list for x86_64 and aarch64.

Foreign architectures and x32 are killed. Denied calls return EPERM; clone3, whose flags a filter
cannot read, returns ENOSYS so that libc falls back to clone.
"""

from __future__ import annotations

import ctypes
import struct

from .kernel import ARM, PR_SET_SECCOMP, prctl

# name: (x86_64, aarch64); None where the architecture has no such call
_Calls = dict[str, tuple[int, int | None]]
DENIED: _Calls = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    # file systems and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    # memory that neither the private file system nor a resource limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # the same of other processes, which take a number and no file
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_unlink": (241, 181),
    # wide or rarely tested parts of the kernel
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "iopl": (172, None),
    "ioperm": (173, None),
    "uselib": (134, None),
    "_sysctl": (156, None),
}
NETWORK: _Calls = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
}
# Of a machine's sockets: local ones, those of its own loopback, and those that tell about it.
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_ROUTE, _AUDIT = 0, 9
# What the launcher's user may do to their own files and processes and Landlock does not govern.
DENIED_TO_LAUNCHERS_USER: _Calls = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_add_watch": (254, 27),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _UNKNOWN = _ERRNO | 1, _ERRNO | 38  # EPERM, ENOSYS
_NO_FAMILY, _NO_PROTOCOL = _ERRNO | 97, _ERRNO | 93  # EAFNOSUPPORT, EPROTONOSUPPORT
_PRETEND = _ERRNO | 0  # the call is not made and returns 0
_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone() can carry


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    return _step(_LOAD, 16 + 8 * index)  # low half; both architectures are little-endian


def _when(call: int, body: list[bytes]) -> list[bytes]:
    """*body* for this call only; the call's number is loaded again after it."""
    reload = _step(_LOAD, 0)
    return [_step(_EQUAL, call, 0, len(body) + 1), *body, reload]


def _refuse_all(calls: _Calls) -> list[bytes]:
    steps = []
    for numbers in calls.values():
        number = numbers[1 if ARM else 0]
        if number is not None:
            steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _REFUSE)]
    return steps


def assemble(
    *,
    launchers_user: bool = False,
    truncate: bool = True,
    only_signal: int | None = None,
    sockets: bool = False,
) -> bytes:
    """Return the filter.

    Args:
        launchers_user: The answer has the launcher's user id and nothing but Landlock between it
            and that user's files and processes.
        truncate: With *launchers_user*: Landlock governs truncation (ABI 3 and later).
        only_signal: kill() and tgkill() reach this process alone.
        sockets: Local and Internet sockets may be made; a network namespace must bound them.
            No others, some of which (AF_VSOCK) know no namespaces.
    """
    refuse = _step(_RETURN, _REFUSE)
    steps = [
        _step(_LOAD, 4),
        _step(_EQUAL, 0xC00000B7 if ARM else 0xC000003E, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, 0),
    ]
    if not ARM:
        steps += [_step(_AT_LEAST, 0x40000000, 0, 1), _step(_RETURN, _KILL)]
    steps += _refuse_all(DENIED)
    steps += [_step(_EQUAL, 435, 0, 1), _step(_RETURN, _UNKNOWN)]  # clone3
    clone, ioctl, prlimit, pair = (220, 29, 261, 199) if ARM else (56, 16, 302, 53)
    steps += _when(clone, [_argument(0), _step(_ANY_BIT, _NAMESPACES, 0, 1), refuse])
    for request in (0x5412, 0x541C):  # TIOCSTI, TIOCLINUX: typing into a terminal
        steps += _when(ioctl, [_argument(1), _step(_EQUAL, request, 0, 1), refuse])
    # Limits of oneself only.
    steps += _when(prlimit, [_argument(0), _step(_EQUAL, 0, 1, 0), refuse])
    # Connected local stream pairs only (asyncio needs them): they reach nobody else.
    steps += _when(pair, [_argument(0), _step(_EQUAL, _UNIX, 1, 0), refuse])
    if sockets:
        steps += _families()
    else:
        steps += _when(pair, [_argument(1), _step(_AND, 0xF), _step(_EQUAL, 1, 1, 0), refuse])
        steps += _refuse_all(NETWORK)
    if launchers_user:
        steps += _spare_the_launchers_user(truncate)
    if only_signal is not None:
        kill, tkill, tgkill = (129, 130, 131) if ARM else (62, 200, 234)
        for call in (kill, tgkill):
            steps += _when(call, [_argument(0), _step(_EQUAL, only_signal, 1, 0), refuse])
        steps += [_step(_EQUAL, tkill, 0, 1), refuse]
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _families() -> list[bytes]:
    socket = NETWORK["socket"][1 if ARM else 0]
    assert socket is not None
    body = [_argument(0)]
    known = (_UNIX, _INET, _INET6, _NETLINK)
    for left, family in zip(range(len(known), 0, -1), known, strict=True):
        body.append(_step(_EQUAL, family, left, 0))
    kinds = [_step(_EQUAL, _NETLINK, 0, 4), _argument(2)]
    kinds += [_step(_EQUAL, _ROUTE, 2, 0), _step(_EQUAL, _AUDIT, 1, 0)]
    return _when(socket, [*body, _step(_RETURN, _NO_FAMILY), *kinds, _step(_RETURN, _NO_PROTOCOL)])


def _spare_the_launchers_user(truncate: bool) -> list[bytes]:
    refuse = _step(_RETURN, _REFUSE)
    utimensat, ioctl, fcntl = (88, 29, 25) if ARM else (280, 16, 72)
    steps = _refuse_all(DENIED_TO_LAUNCHERS_USER)
    # `touch` sets an open file to the present: nothing to do for one that it has just made.
    pretend = [_argument(1), _step(_EQUAL, 0, 0, 3), _argument(2), _step(_EQUAL, 0, 0, 1)]
    steps += _when(utimensat, [*pretend, _step(_RETURN, _PRETEND), refuse])
    # Of the requests to open files those to terminals and pipes: others change a file's flags.
    kinds = [_argument(1), _step(_AND, 0xFF00), _step(_EQUAL, 0x5400, 1, 0)]
    steps += _when(ioctl, [*kinds, refuse])
    for command in (8, 15):  # F_SETOWN, F_SETOWN_EX: who gets a descriptor's signals
        steps += _when(fcntl, [_argument(1), _step(_EQUAL, command, 0, 1), refuse])
    if not truncate:
        call = 45 if ARM else 76
        steps += [_step(_EQUAL, call, 0, 1), refuse]
        steps += [_step(_EQUAL, 437, 0, 1), _step(_RETURN, _UNKNOWN)]  # openat2: flags in memory
        # O_TRUNC without writing, which needs the right to read only.
        for call, index in ((56, 2),) if ARM else ((2, 1), (257, 2)):
            for flags in (0x200, 0x203):
                body = [_argument(index), _step(_AND, 0x203), _step(_EQUAL, flags, 0, 1), refuse]
                steps += _when(call, body)
    return steps


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]


def install(program: bytes) -> None:
    """Bind this process and its descendants to the filter; no_new_privs must be set."""
    steps = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // 8, ctypes.addressof(steps))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))
