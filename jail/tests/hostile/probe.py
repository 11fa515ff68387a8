"""A hostile server: tries to get out, one line of JSON per attempt.

Each line is [name, "blocked" | "LEAK" | "works" | "BROKEN", detail]. What the tests need to know of the host comes in by
the environment. System calls go by their numbers on x86-64. Runs in a light jail, too, to show that the attempts can succeed; never as root there: some would.
"""

import ctypes, errno, glob, json, os, resource, socket, struct, subprocess, sys, tempfile

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CODE, SECRET, SIBLING = os.environ["CODE"], os.environ["SECRET"], os.environ["SIBLING"]


class Leak(Exception):
    pass


def attempt(name):
    """The attempt leaks when it returns anything true."""
    def run(function):
        try:
            got = function()
            print(json.dumps([name, "LEAK" if got else "blocked", repr(got)[:200]]))
        except OSError as error:
            print(json.dumps([name, "blocked", errno.errorcode.get(error.errno, str(error))]))
        except ValueError as error:  # how `resource` says EPERM
            print(json.dumps([name, "blocked" if "not allowed" in str(error) else "BROKEN", str(error)]))
        except Exception as error:  # a probe that is broken proves nothing
            print(json.dumps([name, "BROKEN", repr(error)[:300]]))
    return run


def use(name):
    """A thing that an honest server does: it must return something true."""
    def run(function):
        try:
            got = function()
            print(json.dumps([name, "works" if got else "BROKEN", repr(got)[:200]]))
        except Exception as error:
            print(json.dumps([name, "BROKEN", repr(error)[:300]]))
    return run


def call(number, *args):
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_void_p(a) if isinstance(a, int) else a for a in args])
    if got == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return True


def reads(path):
    with open(path, "rb") as file:
        return file.read(4096)


def writes(path, flags=os.O_WRONLY):
    os.close(os.open(path, flags, 0o600))
    return path


def only(errnos, function):
    """Leaks when it works, and when it fails for another reason than the one that blocks it."""
    try:
        function()
    except OSError as error:
        if error.errno in errnos:
            raise
        return "failed with " + errno.errorcode.get(error.errno, "?")
    return True


# Before anything is opened here.
attempt("descriptors beyond the streams")(lambda: [f for f in os.listdir("/proc/self/fd") if int(f) > 2 and os.path.exists(f"/proc/self/fd/{f}")])

# Processes
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
attempt("other processes in /proc")(lambda: [pid for pid in pids if pid not in (1, os.getpid())])
attempt("the command line of a stranger")(lambda: b"sleep" in open(f"/proc/{os.environ['VICTIM']}/cmdline", "rb").read())
attempt("the helper's environment")(lambda: reads("/proc/1/environ"))
attempt("the environment of a stranger")(lambda: reads(f"/proc/{os.environ['VICTIM']}/environ"))
for part in ["mem", "maps", "auxv", "stack"]:
    attempt(f"/proc/1/{part}")(lambda: open(f"/proc/1/{part}", "rb").fileno() > 0)
for link in ["root", "cwd", "exe", "ns/mnt"]:
    attempt(f"/proc/1/{link}")(lambda: os.readlink(f"/proc/1/{link}"))
attempt("descriptors of init")(lambda: os.listdir("/proc/1/fd"))
attempt("a signal to init")(lambda: os.kill(1, 0) is None)
attempt("a signal to a stranger")(lambda: os.kill(int(os.environ["VICTIM"]), 0) is None)
attempt("a pidfd to init with a signal")(lambda: __import__("signal").pidfd_send_signal(os.pidfd_open(1), 0) is None)
attempt("ptrace init")(lambda: call(101, 16, 1, 0, 0))
buffer = ctypes.create_string_buffer(8)
iov = struct.pack("PN", ctypes.addressof(buffer), 8)
attempt("process_vm_readv")(lambda: only([errno.EPERM], lambda: call(310, os.getpid(), iov, 1, iov, 1, 0)))
attempt("pidfd_getfd")(lambda: call(438, os.pidfd_open(os.getpid()), 0, 0))
for kind in ["pid", "mnt", "ipc", "uts", "user", "cgroup", "net"]:
    attempt(f"the host's {kind} namespace")(lambda: os.readlink(f"/proc/self/ns/{kind}") == os.environ["NS_" + kind])

# Files
for path in ["/etc/shadow", "/proc/1/root/etc/shadow", SECRET, "/proc/1/root" + SECRET, "/proc/self/root" + SECRET,
             SIBLING, "/etc/ssl/private", "/root/.bashrc", "/var/log/dpkg.log", "/etc/hostname", "/etc/machine-id"]:
    attempt(f"read {path}")(lambda: os.listdir(path) if os.path.isdir(path) else reads(path))
for path in ["/root", "/home", "/var/lib", "/sys", "/boot", "/mnt", "/var/run/docker.sock", "/run/dbus", "/run/systemd"]:
    attempt(f"find {path}")(lambda: os.listdir(path) if os.path.isdir(path) else os.path.exists(path))
attempt("strangers' files in /tmp")(lambda: [f for f in glob.glob("/tmp/**", recursive=True) if os.path.isfile(f) and not f.startswith((CODE, os.environ["HOME"]))])
attempt("climb out by ..")(lambda: os.path.exists("/" + "../" * 30 + SECRET.lstrip("/")))
for path in ["/", "/usr/local/bin", "/usr/lib", "/etc", CODE, "/dev", "/proc/sys/kernel", "/run", "/var"]:
    attempt(f"create in {path}")(lambda: writes(path + "/intruder", os.O_WRONLY | os.O_CREAT) and os.unlink(path + "/intruder") is None)
for path in [CODE + "/probe.py", "/etc/passwd", "/usr/bin/env", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches",
             "/proc/sysrq-trigger", "/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/hostname", "/proc/irq/default_smp_affinity"]:
    attempt(f"open {path} for writing")(lambda: writes(path))
attempt("replace the code")(lambda: os.rename(CODE, CODE + ".old"))
attempt("make the code writable")(lambda: os.chmod(CODE + "/probe.py", 0o777) is None)
for path in ["/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/config.gz", "/proc/timer_list", "/proc/kmsg"]:
    attempt(f"read {path}")(lambda: reads(path))
attempt("device nodes beyond the five")(lambda: sorted(set(os.listdir("/dev")) - {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm"}))
for path in ["/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/vda", "/dev/net/tun", "/dev/tty"]:
    attempt(f"open {path}")(lambda: writes(path))
attempt("make a device")(lambda: os.mknod(os.environ["HOME"] + "/device", 0o20666, os.makedev(1, 1)) is None)
attempt("mounts that obey setuid programs")(lambda: [l for l in open("/proc/self/mountinfo") if "nosuid" not in l.split(" - ")[0]])
attempt("writable mounts")(lambda: [l.split()[4] for l in open("/proc/self/mountinfo") if l.split()[5].startswith("rw")
        and l.split()[4] not in ("/tmp", "/dev/shm", "/proc", os.environ["HOME"], os.environ["TMPDIR"]) and not l.split()[4].startswith("/dev/")])
attempt("a setuid shell")(lambda: b"uid=0" in subprocess.run(["/bin/sh", "-c", "su -c id </dev/null 2>&1"], capture_output=True).stdout)

# Privileges
attempt("become root")(lambda: os.setuid(0) is None or os.getuid() == 0)
attempt("drop to another uid")(lambda: os.setuid(12345) is None if os.getuid() != 12345 else None)
attempt("root's uid")(lambda: os.getuid() == 0)
attempt("other groups")(lambda: [g for g in os.getgroups() if g != os.getgid()])
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
    attempt(f"capabilities in {name}")(lambda: int(status[name], 16))
attempt("new privileges")(lambda: status["NoNewPrivs"] != "1")
attempt("no filter")(lambda: status["Seccomp"] != "2")
attempt("raise the core limit")(lambda: resource.getrlimit(resource.RLIMIT_CORE) != (1, 1) or resource.setrlimit(resource.RLIMIT_CORE, (2, 2)) is None)
attempt("nice")(lambda: os.nice(-5) < 0)
attempt("realtime")(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) is None)
attempt("immunity from the out-of-memory killer")(lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))

# The kernel
NEWUSER, NEWNS, NEWNET = 0x10000000, 0x20000, 0x40000000
def child(function):
    """In a fork, so that a success changes nothing for the probes to come."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "refused")
    return True
def forked(flags):
    got = libc.syscall(ctypes.c_long(56), ctypes.c_long(flags | 17), *[ctypes.c_long(0)] * 4)
    if got == 0:
        os._exit(0)
    if got < 0:
        raise OSError(ctypes.get_errno(), "refused")
    os.waitpid(got, 0)
    return True
attempt("a user namespace by unshare")(lambda: child(lambda: call(272, NEWUSER)))
attempt("a user namespace by clone")(lambda: forked(NEWUSER))
attempt("a mount namespace by clone")(lambda: forked(NEWNS))
attempt("clone3")(lambda: only([errno.ENOSYS], lambda: call(435, 0, 0)))
attempt("ptrace traceme")(lambda: only([errno.EPERM], lambda: child(lambda: call(101, 0, 0, 0, 0))))
attempt("setns")(lambda: only([errno.EPERM], lambda: call(308, os.open("/proc/self/ns/uts", os.O_RDONLY), 0)))
attempt("mount")(lambda: only([errno.EPERM], lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0)))
attempt("remount")(lambda: only([errno.EPERM], lambda: call(165, b"none", b"/", 0, 0x1020, 0)))
attempt("umount")(lambda: only([errno.EPERM], lambda: call(166, b"/proc", 2)))
attempt("pivot_root")(lambda: only([errno.EPERM], lambda: call(155, b"/tmp", b"/tmp")))
attempt("chroot")(lambda: child(lambda: os.chroot("/tmp")))
for name, number in {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
                     "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249,
                     "init_module": 175, "finit_module": 313, "kexec_load": 246, "reboot": 169, "swapon": 167, "acct": 163,
                     "syslog": 103, "settimeofday": 164, "iopl": 172, "name_to_handle_at": 303, "open_by_handle_at": 304,
                     "fanotify_init": 300, "kcmp": 312, "personality": 135}.items():
    # All arguments are nonsense: an answer other than EPERM comes from the call itself.
    attempt(name)(lambda: only([errno.EPERM], lambda: call(number, -1, 0, 0, 0, 0)))
for name, number in {"io_uring_setup": 425, "io_uring_enter": 426, "memfd_secret": 447}.items():
    attempt(name)(lambda: only([errno.ENOSYS], lambda: call(number, -1, 0, 0, 0, 0)))
attempt("a call by x32 number")(lambda: only([errno.ENOSYS], lambda: call(0x40000000 + 39)))
def gate():
    """getpid by `int 0x80`: the numbers of another architecture."""
    memory = __import__("mmap").mmap(-1, 4096, prot=7)
    memory.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if function() == os.getpid() else 1)
    return os.waitpid(pid, 0)[1] == 0
attempt("a call by the 32-bit gate")(gate)
attempt("typing into a terminal")(lambda: only([errno.EPERM], lambda: __import__("fcntl").ioctl(0, 0x5412, b"x")))

# The network
for name, args in {"packet": (17, 3, 0), "packet, cooked": (17, 2, 0), "raw": (2, 3, 1), "raw 6": (10, 3, 58), "alg": (38, 5, 0), "vsock": (40, 1, 0),
                   "netlink audit": (16, 3, 9), "netlink uevent": (16, 3, 15), "mptcp": (2, 1, 262), "sctp": (2, 1, 132), "bluetooth": (31, 3, 1), "xdp": (44, 3, 0), "tipc": (30, 1, 0)}.items():
    attempt(f"socket: {name}")(lambda: only([errno.EPERM], lambda: socket.socket(*args).close()))
def connects(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        s.connect(address)
        return s.getpeername() or True
attempt("the host's loopback")(lambda: connects(socket.AF_INET, ("127.0.0.1", int(os.environ["PORT"]))))
attempt("the host's abstract socket")(lambda: connects(socket.AF_UNIX, "\0" + os.environ["ABSTRACT"]))
attempt("the host's path socket")(lambda: connects(socket.AF_UNIX, os.environ["SOCKET"]))
attempt("a route by UDP")(lambda: connects(socket.AF_INET, ("8.8.8.8", 53), socket.SOCK_DGRAM))
attempt("a route by UDP, v6")(lambda: connects(socket.AF_INET6, ("2001:4860:4860::8888", 53), socket.SOCK_DGRAM))
attempt("the metadata address")(lambda: connects(socket.AF_INET, ("169.254.169.254", 80), socket.SOCK_DGRAM))
attempt("routes")(lambda: open("/proc/net/route").read().splitlines()[1:])
attempt("interfaces")(lambda: [name for _, name in socket.if_nameindex() if name != "lo"])
def fast_open():
    with socket.socket() as s:
        s.sendto(b"x", 0x20000000, ("127.0.0.1", 9))
attempt("TCP Fast Open")(lambda: only([errno.EPERM], fast_open))

# What honest servers do
use("home")(lambda: writes(os.environ["HOME"] + "/file", os.O_WRONLY | os.O_CREAT) and os.rename(os.environ["HOME"] + "/file", os.environ["HOME"] + "/other") is None)
use("a directory moved between directories")(lambda: [os.makedirs(os.environ["HOME"] + "/a/b", exist_ok=True), os.makedirs(os.environ["HOME"] + "/c", exist_ok=True), os.rename(os.environ["HOME"] + "/a/b", os.environ["HOME"] + "/c/b")])
use("tempfile")(lambda: tempfile.NamedTemporaryFile().write(b"x"))
use("/tmp")(lambda: writes("/tmp/x", os.O_WRONLY | os.O_CREAT))
use("/dev/null and /dev/urandom")(lambda: open("/dev/null", "w").write("x") and reads("/dev/urandom"))
if os.fstat(1).st_uid == os.getuid() != 65534:  # not when another user made the pipe: he shows as 65534
    use("/dev/stdout")(lambda: open("/dev/stdout", "w").write("") == 0)
use("threads")(lambda: [t.join() for t in [__import__("threading").Thread(target=print, args=("",), kwargs={"end": ""}) for _ in range(8)] if t.start() is None])
def pool():
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as workers:
        return workers.map(abs, range(-8, 0))
use("multiprocessing")(pool)
use("ssl")(lambda: len(__import__("ssl").create_default_context().get_ca_certs()) > 0)
use("subprocess")(lambda: subprocess.run(["/bin/echo", "hello"], capture_output=True).stdout == b"hello\n")
def sqlite():
    import sqlite3
    with sqlite3.connect(os.environ["HOME"] + "/db") as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table if not exists t (x)")
        return True
use("sqlite with a shared memory file")(sqlite)
def own_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(("localhost", server.getsockname()[1])) as client:
        return client.getpeername()
use("its own loopback by name")(own_loopback)
def own_socket():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("/tmp/own.sock"); server.listen(); client.connect("/tmp/own.sock")
        return True
use("its own path socket")(own_socket)
use("its own name")(lambda: __import__("pwd").getpwuid(os.getuid()).pw_dir == os.environ["HOME"])
use("memory made executable")(lambda: __import__("mmap").mmap(-1, 4096, prot=7))
use("the local time")(lambda: os.path.exists("/etc/localtime"))
print(json.dumps(["end", "works", ""]))
