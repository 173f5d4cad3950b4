"""Programs as forks of a process that has already imported their libraries.

A stage on tiny data spends most of its time on imports. Here one process imports the libraries, but
nothing of the project, and forks for each program. The fork gets the caller's arguments, folder,
variables and streams, and imports the project's modules itself. `python()` replaces Python.
"""

import atexit
import functools
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from select import select
from threading import Thread

import numpy as np

LIBRARIES = (
    "click",
    "concurrent.futures.process",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.repo.reproduce",
    "dvc.repo.status",
    "dvc.rwlock",
    "h5py",
    "hdf5plugin",
    "jinja2",
    "lightning_fabric",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "networkx",
    "pandas",
    "PIL.Image",
    "psutil",
    "pydantic.main",
    "rich.console",
    "rich.progress",
    "rich.table",
    "ruamel.yaml",
    "safetensors.torch",
    "scmrepo.git",
    "segmentation_models_pytorch",
    "torch",
    "torch.utils.data",
    "torchvision",
    "yaml",
)
# Asks for a program and takes over its exit status; if this is killed, so is the program.
CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(os.path.dirname(__file__), "socket"))
    request = [sys.argv[1:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.recv(8) or 1))
"""


@functools.cache
def python(libraries: tuple[str, ...] = LIBRARIES) -> Path:
    """A program named python that runs a module (`-m`), code (`-c`) or a file, with arguments.

    Its process has imported some libraries. If it cannot safely be forked, this is Python itself.
    """
    if sys.platform != "linux":
        return Path(sys.executable)
    folder = Path(tempfile.mkdtemp())
    client, command = folder / "client.py", folder / "python"
    client.write_text(CLIENT)
    command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(client)])} "$@"\n')
    command.chmod(0o755)
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, __file__, str(folder / "socket"), *libraries],
        env=inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,  # it ends when this does
        stdout=subprocess.PIPE,
    )
    assert server.stdout.readline() == b"ready\n"

    def stop() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(stop)
    return command


def requests(address: str) -> Iterator[tuple[socket.socket, list[int], list]]:
    """Wait for requests and continue each in a fork: its connection, streams and content."""
    signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork():
                connection.close()
                continue
            message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            while not message.endswith(b"\n"):
                message += connection.recv(1 << 20)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            yield connection, streams, json.loads(message)
            os._exit(0)


def run(streams: list[int], arguments: list[str], folder: str, variables: dict[str, str]) -> None:
    """Do as `python ARGUMENTS`, in another folder, with other streams and variables."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    np.random.seed()  # or all forks would draw the same
    sys.path[:1] = [folder, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
    if arguments[0] == "-u":  # torchrun's
        arguments = arguments[1:]
    if arguments[0] in ("-m", "-c"):
        option, what, *sys.argv[1:] = arguments
        sys.argv[0] = option
    else:
        option, sys.argv = "", arguments
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif option == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def kill_after(connection: socket.socket, program: multiprocessing.Process) -> None:
    """Kill a program when the process that asked for it has ended."""
    connection.recv(1)
    program.kill()


def main(address: str, *libraries: str) -> None:
    """Import the libraries, then fork a program for each request."""
    for library in libraries:
        importlib.import_module(library)
    gc.freeze()  # forks share the pages of what they do not look at
    fork = multiprocessing.get_context("fork")
    for connection, streams, request in requests(address):
        program = fork.Process(target=run, args=(streams, *request))
        program.start()
        Thread(target=kill_after, args=(connection, program), daemon=True).start()
        program.join()
        with suppress(ConnectionError):  # killed with the caller
            connection.send(str(program.exitcode).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
