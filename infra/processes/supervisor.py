"""The supervisor of this program's other processes: starts them, restarts them when they die, stops them together.

    Supervisor         in the parent; waits for signals and for ends of children, and never polls
    die_with_parent    in a child; ends it when the parent is gone, however that ended
    announce_ready     in a child; tells the parent that it can serve

Two pipes connect a child with its parent; the child finds their file descriptors in its environment. Into one it writes
a line once it is ready. The other, whose only writing end is the parent's, never carries anything: its end tells the
child, on every platform, that the parent is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final, Self

PARENT_FD: Final = "SPARKLEDGER_PARENT_FD"
READY_FD: Final = "SPARKLEDGER_READY_FD"

STOP_SECONDS: Final = 5.0
RESTART_SECONDS_FIRST: Final = 0.2
RESTART_SECONDS_MAX: Final = 5.0
LIVED_LONG_SECONDS: Final = 30
# `timeout`, `make` and a terminal may each deliver the same signal once more; only a later one means impatience.
SAME_REQUEST_SECONDS: Final = 1.0
REAP_SECONDS_MAX: Final = 2
# No more than a pipe takes in one piece (PIPE_BUF is 512 bytes or more), so that a line arrives whole.
ANNOUNCEMENT_BYTES_MAX: Final = 512

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_log = logging.getLogger(__name__)


class SupervisorError(Exception):
    """A child could not be started, or was not ready in time."""


@dataclass(frozen=True)
class Child:
    """A process to keep running: its name in the log, its command line, its environment (None: the parent's)."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None


@dataclass
class _State:
    """What is known about one child.

    Attributes:
        process: its present process; None between an end and a restart.
        started_at: when that process was started.
        ready_fd: the reading end of the pipe for its announcement, until that came.
        announced: the line by which it said that it is ready.
        ended: how its last process ended.
        pause: the seconds before its next restart.
        restart_at: when it is to be restarted.

    """

    child: Child
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    ready_fd: int | None = None
    announced: str | None = None
    ended: str = "it was not started"
    pause: float = RESTART_SECONDS_FIRST
    restart_at: float | None = None


class Supervisor:
    """Keeps `children` running from `start` until a stop signal; a context manager that leaves none behind.

    The context must be in the main thread, and handles SIGINT, SIGTERM, SIGHUP and SIGCHLD. Children run in sessions of
    their own, so that Ctrl-C reaches only the supervisor.
    """

    def __init__(self, children: Sequence[Child], stop_seconds: float = STOP_SECONDS) -> None:
        """Take the children, and the seconds they have to end after they are told to."""
        self._states = {child.name: _State(child) for child in children}
        self._stop_seconds = stop_seconds
        self._selector = selectors.DefaultSelector()
        self._stop_asked_at: float | None = None
        self._kill_now = False
        self._awaited: str | None = None
        self._undo = contextlib.ExitStack()
        self._parent_fd = -1

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._selector.close)
            self._parent_fd, write_end = os.pipe()
            undo.callback(os.close, self._parent_fd)
            undo.callback(os.close, write_end)
            # Python writes the number of each signal into one end, so that the selector wakes up at the other.
            receiver, sender = (undo.enter_context(end) for end in socket.socketpair())
            receiver.settimeout(0)
            sender.settimeout(0)
            for number in (*STOP_SIGNALS, signal.SIGCHLD):
                # nohup ignores SIGHUP, because the program is to outlive the terminal.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    undo.callback(signal.signal, number, signal.signal(number, _ignore))
            wakeup_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            undo.callback(signal.set_wakeup_fd, wakeup_fd)
            self._selector.register(receiver, selectors.EVENT_READ, lambda: self._read_signals(receiver))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._undo.close()

    @property
    def stop_asked(self) -> bool:
        """Whether a signal, or `stop`, has asked for the end."""
        return self._stop_asked_at is not None

    def start(self) -> None:
        """Start every child; raises SupervisorError where one cannot be executed."""
        for state in self._states.values():
            try:
                self._launch(state)
            except OSError as error:
                raise SupervisorError(f"{state.child.name} cannot be started: {error}") from error

    def wait_ready(self, name: str, timeout: float) -> str | None:
        """Wait at most `timeout` seconds for a child's announcement, and return it; None where a stop is asked for.

        Raises SupervisorError where the child ends first, or announces nothing in that time.
        """
        deadline = time.monotonic() + timeout
        state = self._states[name]
        self._awaited = name
        try:
            while not self.stop_asked:
                if state.announced is not None:
                    return state.announced
                if state.process is None:
                    raise SupervisorError(f"{name} ended before it was ready ({state.ended}). See its output.")
                if time.monotonic() >= deadline:
                    raise SupervisorError(f"{name} was not ready within {timeout:g} seconds. See its output.")
                self._wait(deadline)
        finally:
            self._awaited = None
        return None

    def run(self) -> None:
        """Keep the children running until a signal asks for the end, then stop them."""
        while not self.stop_asked:
            self._wait(None)
        self.stop()

    def stop(self) -> None:
        """Send SIGTERM to every child, and kill those that run after `stop_seconds`, or after a second signal."""
        self._stop_asked_at = self._stop_asked_at or time.monotonic()
        for state in self._states.values():
            state.restart_at = None
        for _, process in self._living():
            process.terminate()
        deadline = time.monotonic() + self._stop_seconds
        while self._living() and not self._kill_now and time.monotonic() < deadline:
            self._wait(deadline)
        for state, process in self._living():
            _log.warning("%s did not stop in time and is killed", state.child.name)
            # The child leads a process group, so that what it started is killed with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for state, process in self._living():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_SECONDS_MAX)
            self._forget(state, "killed")

    def _living(self) -> list[tuple[_State, subprocess.Popen[bytes]]]:
        return [(state, state.process) for state in self._states.values() if state.process is not None]

    def _wait(self, deadline: float | None) -> None:
        """Wait for a signal, an announcement, the next restart or `deadline`, and react to what happened."""
        times = [state.restart_at for state in self._states.values() if state.restart_at is not None]
        if deadline is not None:
            times.append(deadline)
        for key, _ in self._selector.select(max(0.0, min(times) - time.monotonic()) if times else None):
            key.data()
        for state, process in self._living():
            if process.poll() is not None:
                self._after_end(state, process.returncode)
        for state in self._states.values():
            if state.restart_at is not None and state.restart_at <= time.monotonic():
                try:
                    self._launch(state)
                except OSError as error:
                    self._plan_restart(state, str(error))

    def _launch(self, state: _State) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        env = os.environ if state.child.env is None else state.child.env
        try:
            state.process = subprocess.Popen(
                state.child.argv,
                env={**env, PARENT_FD: str(self._parent_fd), READY_FD: str(write_end)},
                stdin=subprocess.DEVNULL,
                pass_fds=(self._parent_fd, write_end),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        state.started_at, state.restart_at = time.monotonic(), None
        state.ready_fd, state.announced = read_end, None
        self._selector.register(read_end, selectors.EVENT_READ, lambda: self._read_announcement(state))

    def _after_end(self, state: _State, returncode: int) -> None:
        # What it announced just before its end is still in the pipe.
        self._read_announcement(state)
        ended = f"killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
        self._forget(state, ended)
        if time.monotonic() - state.started_at > LIVED_LONG_SECONDS:
            state.pause = RESTART_SECONDS_FIRST
        # A child that fails during the start would only fail again, and `wait_ready` reports it.
        if not self.stop_asked and state.child.name != self._awaited:
            self._plan_restart(state, ended)

    def _plan_restart(self, state: _State, ended: str) -> None:
        _log.warning("%s ended unexpectedly (%s); restarting it in %.1f s", state.child.name, ended, state.pause)
        state.restart_at = time.monotonic() + state.pause
        state.pause = min(2 * state.pause, RESTART_SECONDS_MAX)

    def _forget(self, state: _State, ended: str) -> None:
        self._close_ready(state)
        state.process, state.announced, state.ended = None, None, ended

    def _close_ready(self, state: _State) -> None:
        if state.ready_fd is not None:
            self._selector.unregister(state.ready_fd)
            os.close(state.ready_fd)
            state.ready_fd = None

    def _read_announcement(self, state: _State) -> None:
        if state.ready_fd is None:
            return
        with contextlib.suppress(BlockingIOError):
            line, newline, _ = os.read(state.ready_fd, ANNOUNCEMENT_BYTES_MAX).partition(b"\n")
            if newline:
                state.announced = line.decode(errors="replace")
            self._close_ready(state)

    def _read_signals(self, receiver: socket.socket) -> None:
        for number in receiver.recv(4096):
            if number not in STOP_SIGNALS:
                continue
            now = time.monotonic()
            if self._stop_asked_at is None:
                self._stop_asked_at = now
            elif now - self._stop_asked_at > SAME_REQUEST_SECONDS:
                self._kill_now = True


def die_with_parent(grace_seconds: float = STOP_SECONDS) -> None:
    """End this process once its supervisor is gone: by SIGTERM, and after `grace_seconds` by force.

    Call it once, early. It does nothing where no supervisor started this process.
    """
    number = os.environ.pop(PARENT_FD, None)
    if number is None:
        return
    parent_fd = int(number)
    os.set_inheritable(parent_fd, False)  # noqa: FBT003 - it takes no name

    def follow() -> None:
        os.read(parent_fd, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=follow, name="die-with-parent", daemon=True).start()


def announce_ready(message: str = "ready") -> None:
    """Tell the supervisor that this process can serve; `wait_ready` returns the message, one line, there.

    It does nothing where no supervisor started this process, and nothing the second time.
    """
    number = os.environ.pop(READY_FD, None)
    if number is None:
        return
    line = message.replace("\n", " ").encode()[: ANNOUNCEMENT_BYTES_MAX - 1]
    with contextlib.suppress(BrokenPipeError), open(int(number), "wb", buffering=0) as pipe:  # noqa: PTH123
        pipe.write(line + b"\n")


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit (128 + number) in the block, so that its resources are released.

    For the main thread, before or without a Supervisor.
    """

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with contextlib.ExitStack() as undo:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                undo.callback(signal.signal, number, signal.signal(number, leave))
        yield


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python writes the numbers of signals that have a handler into the wakeup descriptor."""
