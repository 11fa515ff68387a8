"""Executes a program under a filter that answers one system call with EPERM: a machine that lacks one thing."""

import ctypes, os, struct, sys

number, program = int(sys.argv[1]), sys.argv[2:]
code = b"".join([
    struct.pack("HBBI", 0x20, 0, 0, 0),  # the number
    struct.pack("HBBI", 0x15, 0, 1, number),
    struct.pack("HBBI", 0x06, 0, 0, 0x00050001),  # an error: EPERM
    struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000),
])
buffer = ctypes.create_string_buffer(code)
filter = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter) == 0
os.execv(program[0], program)
