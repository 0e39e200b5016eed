"""Python processes for tests, without the ten seconds in which each would import torch, Lightning and the rest anew.

`Popen` and `run` are used as those of `subprocess`. The first of them starts a *zygote*: a process that imports the
libraries of `LIBRARIES` (none of this project's modules) and then waits. For `python -m MODULE ...` and
`python -c CODE ...` it makes a copy of itself that is a child of the process that asked (Linux: CLONE_PARENT), has that
one's streams, folder, environment and ignored signals, and goes on as a new interpreter would: with `__main__`,
`sys.argv` and `sys.path` as they are there, unseeded random numbers, and the default handlers of signals. It ends as
an interpreter ends, and waiting, signals and exit codes are the operating system's. Python processes that it starts by
`subprocess` (the ranks of Lightning, the jobs of a sweep) come from a zygote of its own.

What a test has to show about the start itself (what is imported, closed streams, another installation) is started by
`subprocess`. So is, without being asked, whatever a copy cannot imitate: other programs, options of Python, a terminal,
a changed variable that libraries read when they are imported, another system than Linux. All copies share a hash seed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import inspect
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import PIPE
from types import ModuleType
from typing import Any

#: what the commands import sooner or later, apart from what these import themselves
LIBRARIES = (
    "hydra", "hydra.core.config_store", "hydra.core.plugins", "hydra._internal.core_plugins.basic_launcher",
    "numpy", "scipy.optimize", "scipy.signal", "scipy.stats", "sklearn.datasets", "sklearn.linear_model", "sklearn.svm",
    "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks", "torch.utils.flop_counter",
    "torchvision.models", "torchvision.transforms", "timm.models.vision_transformer", "torch_fidelity",
    "lightning.pytorch", "lightning.pytorch.loggers", "lightning.pytorch.strategies",
    "torchmetrics", "torchmetrics.image.fid", "torchmetrics.image.inception", "torchmetrics.image.kid",
    "diffusers", "diffusers.models.autoencoders.autoencoder_kl", "diffusers.schedulers.scheduling_ddpm",
    "transformers", "safetensors.torch", "matplotlib.figure", "matplotlib.backends.backend_agg",
    "PIL.Image", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "rich.progress", "filelock", "av",
)  # fmt: skip
#: beginnings of the variables that these libraries, or Python, read when they start
_READ_AT_START = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "LD_", "MPL", "HF_", "TRANSFORMERS_", "XDG_", "HOME")
_CLONE = {"x86_64": 56, "aarch64": 220}  # the number of the system call
_CLONE_PARENT = 0x8000
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ENVIRONMENT = dict(os.environ)
_zygote: Zygote | None = None
_lock = threading.Lock()


class Popen(subprocess.Popen):
    """`subprocess.Popen`, from the zygote where that makes no difference."""

    def _execute_child(self, *args: Any, **options: Any) -> None:
        call = inspect.signature(super()._execute_child).bind(*args, **options).arguments
        with _lock:
            zygote = self._zygote(call)
            if zygote is None:
                super()._execute_child(*args, **options)
                return
            given = [call["p2cread"], call["c2pwrite"], call["errwrite"]]
            self.pid = zygote.ask(
                [own if own != -1 else stream for stream, own in enumerate(given)],
                args=[os.fsdecode(arg) for arg in call["args"]],
                cwd=os.fspath(call["cwd"] or os.getcwd()),
                env=dict(os.environ if call["env"] is None else call["env"]),
                session=call["start_new_session"],
                ignored=[number for number in _STOPPING if signal.getsignal(number) == signal.SIG_IGN],
            )
        self._child_created = True
        names = "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"
        self._close_pipe_fds(*(call[name] for name in names))

    @staticmethod
    def _zygote(call: dict[str, Any]) -> Zygote | None:
        args, env = call["args"], os.environ if call["env"] is None else call["env"]
        usual = not any(
            call.get(name) for name in ("preexec_fn", "pass_fds", "shell", "gids", "creationflags")
        ) and all(call.get(name) in (None, -1) for name in ("process_group", "gid", "uid", "umask"))
        python = not isinstance(args, str) and args[0] == sys.executable and args[1:2] in (["-m"], ["-c"])
        if not (usual and python and len(args) > 2 and call["executable"] in (None, sys.executable)):
            return None
        streams = (call["p2cread"], call["c2pwrite"], call["errwrite"])
        if any(os.isatty(own if own != -1 else stream) for stream, own in enumerate(streams)):
            return None
        zygote = start()
        return zygote if zygote is not None and read_at_start(env) == zygote.read_at_start else None


def run(args: list[str], *, timeout: float | None = None, check: bool = False, **options: Any) -> Any:
    """`subprocess.run` of a Python process."""
    if options.pop("capture_output", False):
        options |= {"stdout": PIPE, "stderr": PIPE}
    with Popen(args, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def read_at_start(environment: Any) -> dict[str, str]:
    """The variables in which a process from the zygote may not differ from it."""
    return {k: v for k, v in environment.items() if k.startswith(_READ_AT_START) and k != "PYTHONPATH"}


class Zygote:
    """The zygote of this process, as the process sees it."""

    def __init__(self, end: socket.socket, environment: Any) -> None:
        self.owner, self.socket, self.read_at_start = os.getpid(), end, read_at_start(environment)

    def ask(self, streams: list[int], **request: Any) -> int:
        """Start a process; returns its id."""
        socket.send_fds(self.socket, [json.dumps(request).encode()], streams)
        return int(self.socket.recv(100))


def start() -> Zygote | None:
    """The zygote of this process; the first call starts it. None where there cannot be one."""
    global _zygote
    if _zygote is None and sys.platform == "linux" and os.uname().machine in _CLONE:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import processes; processes.main()"
        room = "-" * 4000  # for what `ps` shows of the copies
        line = [sys.executable, "-c", code, str(theirs.fileno()), str(os.getpid()), room]
        _zygote = Zygote(ours, _ENVIRONMENT)
        _zygote.process = subprocess.Popen(
            line,
            pass_fds=[theirs.fileno()],
            env=_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
    return _zygote if _zygote is not None and _zygote.owner == os.getpid() else None


# What follows runs in the zygote and in its copies.


def _serve(end: socket.socket, parent: int) -> dict[str, Any]:
    """Answer requests as long as the parent lives; returns in each copy, with its request."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        message, streams, _, _ = socket.recv_fds(end, 1 << 20, 3)
        if not message:
            break
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # what is sent to the copy waits until it can be handled
        if _copy() == 0:
            request = json.loads(message)
            for stream, given in enumerate(streams):
                os.dup2(given, stream)
                os.close(given)
            if request["session"]:
                os.setsid()
            end.send(str(os.getpid()).encode())
            end.close()
            return request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        for given in streams:
            os.close(given)
    os._exit(0)


def _copy() -> int:
    """`os.fork`, but the copy is a child of this process's parent."""
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = ctypes.PyDLL(None).syscall(_CLONE[os.uname().machine], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid


def _own_zygote(environment: dict[str, str]) -> dict[str, Any] | None:
    """Give this copy a zygote, a copy of it in turn; returns None, and in the copies of that zygote their request."""
    global _zygote
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        os.close(nowhere)
        return _serve(theirs, parent)
    theirs.close()
    _zygote = Zygote(ours, environment)
    return None


def _become(request: dict[str, Any], others: list[str]) -> None:
    """Make this copy what a new interpreter is before it comes to the module or the code.

    Args:
        others: `sys.path` without its first entry and without those of PYTHONPATH.
    """
    arguments = request["args"]
    _title(arguments)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = [os.getcwd() if arguments[1] == "-m" else "", *_pythonpath(request["env"]), *others]
    sys.orig_argv, sys.argv = arguments, [arguments[1], *arguments[3:]]
    sys.modules["__main__"] = ModuleType("__main__")
    random.seed()
    sys.modules["numpy"].random.seed()
    rank = sys.modules["lightning.fabric.utilities.rank_zero"]  # has read the rank's variables
    rank.rank_zero_only.rank = rank._get_rank() or 0
    subprocess.Popen = Popen  # the next generation
    for number in _STOPPING:  # what has come so far ends it without a word, as an interpreter that is not there yet
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _title(arguments: list[str]) -> None:
    """Let `ps` show these arguments."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end
    text = b"\0".join(os.fsencode(argument) for argument in arguments)[: end - begin - 1]
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, text, len(text))


def _pythonpath(environment: Any) -> list[str]:
    return [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]


def _load() -> None:
    """Import the libraries, with what makes torchvision importable."""
    from importlib import import_module, util

    root = Path(__file__).resolve().parents[1]
    spec = util.spec_from_file_location("shims", root / "src" / "neural_rdm" / "core" / "shims.py")
    shims = util.module_from_spec(spec)
    spec.loader.exec_module(shims)
    shims.install()
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # an extra that is not installed
            import_module(name)
    assert not any(name.partition(".")[0] == "neural_rdm" for name in sys.modules), "the project itself is loaded"
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread, which no copy would have"
    gc.freeze()


def _end(code: Any) -> None:
    """End as an interpreter does, but leave the memory to the system: to take hundreds of modules apart one by one,
    which copies their pages, is most of the time of a short command. Returns where only an interpreter can do it.
    """
    if code is not None and not isinstance(code, int):
        return  # what is no number is printed
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        return  # an interpreter says so, and has a code for it
    os._exit((code or 0) & 0xFF)


def main() -> None:
    """What a zygote runs."""
    end, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    others = [p for p in sys.path[2:] if p not in _pythonpath(os.environ)]
    _load()
    request: dict[str, Any] | None = _serve(end, parent)
    while request is not None:
        mine, request = request, _own_zygote(request["env"])
    _become(mine, others)
    _, option, name, *_ = mine["args"]
    try:
        if option == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            exec(compile(name, "<string>", "exec"), sys.modules["__main__"].__dict__)
    except SystemExit as stop:
        _end(stop.code)
        raise
    _end(None)
