"""Programs of tests started by fork, from a process that has imported torch and dtrain, which takes longer than most.

    process = ForkedProgram([sys.executable, "-m", "dtrain.train", ...], cwd=..., env=..., stdout=PIPE, ...)

`ForkedProgram` is a `subprocess.Popen` whose child is made by a server, one for each process of tests, and is handed
over: it is forked twice, and what has lost its parent goes to the nearest ancestor that asks for it, which is ours. So
waiting, signals and process groups are as for any child. What the server cannot do (other programs than dtrain's and
torchrun, another interpreter, PYTHONPATH or number of threads than its own) is started as ever.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAUNCHER = Path(__file__).resolve().parent / "plain_launcher.py"
FIXED = ("PYTHONPATH", "OMP_NUM_THREADS", "COVERAGE_PROCESS_START")
"""Variables that only count when a process starts."""
PR_SET_CHILD_SUBREAPER = 36


class _Server:
    """The end of it that tests hold."""

    def __init__(self, env: Mapping[str, str]) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.fixed = _fixed(env)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=dict(env), start_new_session=True)
        theirs.close()

    def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """The number of a new process."""
        socket.send_fds(self.socket, [json.dumps(request).encode()], list(fds))
        answer = self.socket.recv(64)
        if not answer:
            raise RuntimeError("the server that forks programs has ended")
        return int(answer)


_servers: dict[int, _Server] = {}
"""By the process that holds it: a forked process of tests has none."""


def can_fork(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether it is one of ours, that starts as the server did. Where a program's own start is tested, it is not."""
    ours = ("dtrain.cli", "dtrain.train", "torch.distributed.run")
    is_ours = (command[1:2] == ["-m"] and command[2] in ours) or command[1:2] == [str(LAUNCHER)]
    if command[0] != sys.executable or not is_ours:
        return False
    server = _servers.get(os.getpid())
    return "OMP_NUM_THREADS" in env and (server is None or server.fixed == _fixed(env))


class ForkedProgram(subprocess.Popen[str]):
    """A program that the server forked."""

    def _execute_child(self, *arguments: Any) -> None:
        names = ("args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "startupinfo")
        names += ("creationflags", "shell", "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        given = dict(zip(names, arguments, strict=False))
        env = dict(given["env"])
        server = _servers.get(os.getpid())
        if server is None:
            server = _servers[os.getpid()] = _Server(env)
        request = {"program": list(given["args"])[1:], "cwd": str(given["cwd"] or Path.cwd()), "env": env}
        self.pid = server.fork(request, [given["c2pwrite"], given["errwrite"]])
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))


def _fixed(env: Mapping[str, str]) -> dict[str, str | None]:
    return {name: env.get(name) for name in FIXED}


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork a program for each request, until nobody asks any more. In the forked process: returns its request."""
    while True:
        message, ancillary, *_ = connection.recvmsg(1 << 20, socket.CMSG_LEN(8))
        if not message:
            return None
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        ours, theirs = os.pipe()
        between = os.fork()
        if between == 0:
            program = os.fork()
            if program:
                os.write(theirs, str(program).encode())
                os._exit(0)
            for fd in (ours, theirs):
                os.close(fd)
            connection.close()
            return {**json.loads(message), "stdout": fds[0], "stderr": fds[1]}
        os.waitpid(between, 0)  # by then the program has gone to whoever asked
        connection.send(os.read(ours, 64))
        for fd in (ours, theirs, *fds):
            os.close(fd)


def become(request: Mapping[str, Any]) -> None:
    """Turn into the program."""
    os.setsid()
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for target, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(request[name], target)
    for fd in {request["stdout"], request["stderr"]}:
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = request["program"]
    if program[0] == "-m":
        sys.path[0] = request["cwd"]
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).resolve().parent)
        sys.argv = list(program)
        runpy.run_path(program[0], run_name="__main__")


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    import torch._dynamo
    import torch.distributed
    import torch.distributed.nn.functional  # noqa: F401

    import dtrain.cli
    import dtrain.meter.script
    import dtrain.train.entry  # noqa: F401

    gc.freeze()  # pages stay shared
    request = serve(connection)
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
