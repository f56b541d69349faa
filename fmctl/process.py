# SPDX-License-Identifier: Apache-2.0
"""The one way to start a process, and to end with the process that started this one.

Children start by exec, never by fork alone: a process that serves gRPC has threads. Each child is given a
lifeline, a pipe that closes when the parent dies by any means, so that nothing is left running.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from fmctl.core.errors import FmctlError

LIFELINE = "FMCTL_LIFELINE_FD"
"""Environment variable by which a child learns its end of the lifeline."""


class CommandFailed(FmctlError):
    """A command could not be started, took too long, or ended with another status than 0."""


class Child:
    """A running child process. As a context manager it is stopped on leaving."""

    def __init__(self, argv: Sequence[str], *, pass_fds: Sequence[int] = (), lifeline: bool = True) -> None:
        """Start `argv` in a session of its own, so that Ctrl-C reaches this process alone, which then stops it.

        Its standard input is empty and its output that of this process. Without a lifeline it outlives this process.
        Raises CommandFailed if it cannot be started.
        """
        theirs, self._lifeline = os.pipe()
        try:
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                pass_fds=[*pass_fds, theirs] if lifeline else pass_fds,
                start_new_session=True,
                env={**os.environ, LIFELINE: str(theirs)} if lifeline else None,
            )
        except OSError as error:
            os.close(self._lifeline)
            raise CommandFailed(f"{argv[0]} cannot be started", why=error.strerror or str(error)) from error
        finally:
            os.close(theirs)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def poll(self) -> int | None:
        """Its exit status, negative for a signal, or None while it runs."""
        return self._popen.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end at most `timeout` seconds; None if it still runs."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it at once, and reap it."""
        self._popen.kill()
        self._popen.wait()
        self._close()

    def stop(self, grace: float = 5.0) -> None:
        """Ask it to end, and end it after `grace` seconds."""
        if self.poll() is None:
            self._popen.terminate()
            if self.wait(grace) is None:
                self._popen.kill()
                self._popen.wait()
        self._close()

    def _close(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def hold_lifeline(grace: float = 10.0) -> None:
    """End this process when the one that started it is gone: SIGTERM first, and after `grace` seconds without mercy.

    Does nothing in a process that no `Child` started.
    """
    fd = os.environ.pop(LIFELINE, None)
    if fd is None:
        return

    def watch(lifeline: int) -> None:
        poller = select.poll()
        poller.register(lifeline, 0)
        poller.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace)
        os._exit(1)

    threading.Thread(target=watch, args=(int(fd),), name="lifeline", daemon=True).start()


def run(argv: Sequence[str], *, timeout: float, grace: float = 0.0) -> str:
    """Run a command to its end and return its standard output; raises CommandFailed.

    One that takes longer, or during which this process is interrupted, is killed with all that it started; where it has
    something to undo it is asked to end first, and has `grace` seconds for that.
    """
    pipe = subprocess.PIPE
    try:
        popen = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]} cannot be started", why=error.strerror or str(error)) from error
    with popen:
        try:
            output, errors = popen.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(f"{argv[0]} did not end within {timeout:g} s") from error
        finally:
            _cut_short(popen, grace)
    if popen.returncode != 0:
        raise CommandFailed(f"{argv[0]} failed with status {popen.returncode}", why=errors.strip())
    return output


def _cut_short(popen: subprocess.Popen[str], grace: float) -> None:
    """End a command that leads a session, if it still runs."""
    try:
        if grace and popen.poll() is None:
            os.killpg(popen.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.communicate(timeout=grace)
    finally:
        if popen.poll() is None:
            os.killpg(popen.pid, signal.SIGKILL)


def attempt(argv: Sequence[str], *, timeout: float) -> tuple[int, bytes] | None:
    """Run a command that may hang in the kernel: its exit status and standard output, or None past the deadline.

    It is killed then, and nothing waits for its end, which may never come: neither does the end of this process, nor
    who reads this process's output, of which the command has no part. Raises CommandFailed if it cannot be started.
    """
    try:
        popen = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]} cannot be started", why=error.strerror or str(error)) from error
    try:
        output, _ = popen.communicate(timeout=timeout)
        return popen.returncode, output
    except subprocess.TimeoutExpired:
        return None
    finally:
        _abandon(popen)


class Helper:
    """A child that answers one request after the other, and may hang in the kernel over each.

    Requests come by its standard input, and it ends with that, and so with this process.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        """Start it; raises CommandFailed if it cannot be started."""
        self._name = argv[0]
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._popen: subprocess.Popen[bytes] = subprocess.Popen(
                    list(argv),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                self._socket.close()
                raise CommandFailed(f"{argv[0]} cannot be started", why=error.strerror or str(error)) from error

    def poll(self) -> int | None:
        """Its exit status, negative for a signal, or None while it runs."""
        return self._popen.poll()

    def ask(self, request: bytes, header: struct.Struct, *, timeout: float) -> tuple[int, bytes] | None:
        """Its answer, which begins with the two numbers of `header`: the first, and as many bytes as the second says.

        None past the deadline, when it is abandoned as by `attempt`. Raises CommandFailed where it has ended, and is
        of no use then, either.
        """
        deadline = time.monotonic() + timeout
        answered = False
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(request)
            number, count = header.unpack(self._read(header.size, deadline))
            content = self._read(count, deadline)
            answered = True
            return number, content
        except TimeoutError:
            return None
        except OSError as error:
            raise CommandFailed(f"{self._name} does not answer", why=error.strerror or str(error)) from error
        finally:
            if not answered:
                self._socket.close()
                _abandon(self._popen)

    def stop(self, grace: float = 1.0) -> None:
        """Let it end, as one does that waits for a request; it is abandoned if it has not after `grace` seconds."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(grace)
        _abandon(self._popen)

    def _read(self, count: int, deadline: float) -> bytes:
        """So many bytes; raises TimeoutError or another OSError."""
        found = b""
        while len(found) < count:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self._socket.recv(count - len(found))
            if not chunk:
                raise ConnectionResetError("it has ended")
            found += chunk
        return found


def _abandon(popen: subprocess.Popen[bytes]) -> None:
    """Kill the child, if it still runs, with what it started; a thread reaps it whenever the kernel lets it go."""
    if popen.poll() is None:
        os.killpg(popen.pid, signal.SIGKILL)
        threading.Thread(target=popen.wait, name="abandoned child", daemon=True).start()
    if popen.stdout:
        popen.stdout.close()


def become(argv: Sequence[str]) -> None:
    """Let this process go on as another program; raises CommandFailed if that cannot be started."""
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 (there is no shell in it)
    except OSError as error:
        raise CommandFailed(f"{argv[0]} cannot be started", why=error.strerror or str(error)) from error


def python(module: str, *arguments: str) -> list[str]:
    """The argv that runs a module of ours with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


class Termination:
    """SIGINT and SIGTERM as something to wait for, instead of something that interrupts; main thread only.

    The interpreter writes to a pipe as the signal comes. A handler of ours would run only once the main thread runs
    Python, which it does not where the signal came just before it began to wait.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._descriptor_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds; whether a signal came."""
        ready, _, _ = select.select([self._read], [], [], timeout)
        return bool(ready)

    def __enter__(self) -> Termination:
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor_before)
        os.close(self._read)
        os.close(self._write)
