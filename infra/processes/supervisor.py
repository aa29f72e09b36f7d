"""Runs this program's other processes: starts them, starts them again when they die, and stops them together.

    Supervisor           in the parent; waits for signals and ends of children, and never polls
    die_with_parent      in a child; ends it when the parent is gone, however that ended
    announce_ready       in a child; tells the parent that it can serve

A child is told about two pipes by the numbers of their file descriptors in its environment. Through one it writes a
line once it is ready. From the other, whose only writing end is the parent's, nothing ever comes but its end: that is
how a child learns that the parent was killed, on every platform.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Final, Self

PARENT_FD: Final = "SPARKLEDGER_PARENT_FD"
READY_FD: Final = "SPARKLEDGER_READY_FD"

STOP_SECONDS: Final = 5.0
RESTART_SECONDS_FIRST: Final = 0.2
RESTART_SECONDS_MAX: Final = 5.0
LIVED_LONG_SECONDS: Final = 30
# `timeout`, `make` and a terminal may each deliver the same request once more; only a later one means impatience.
SAME_REQUEST_SECONDS: Final = 1.0
REAP_SECONDS_MAX: Final = 2
ANNOUNCEMENT_BYTES_MAX: Final = 1024

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_log = logging.getLogger(__name__)


class SupervisorError(Exception):
    """A child could not be started, or ended or stayed silent before it was ready."""


@dataclass(frozen=True)
class Child:
    """A process to keep running: its name in the log, its command line, its environment (None: the parent's)."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None


@dataclass
class _Running:
    """One child's present process, and what is known about it."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    pause: float = RESTART_SECONDS_FIRST
    due: float | None = None
    ready_fd: int | None = None
    said: bytes = b""
    announced: str | None = None
    ended: str = field(default="it was not started")


class Supervisor:
    """Keeps `children` running from `start` until a stop signal; a context manager that leaves none behind.

    It handles SIGINT, SIGTERM, SIGHUP and SIGCHLD between entering and leaving the context, which is to happen in the
    main thread. Children run in sessions of their own, so that Ctrl-C reaches the supervisor alone.
    """

    def __init__(self, children: Sequence[Child], stop_seconds: float = STOP_SECONDS) -> None:
        """Take the children, and the seconds they have to end by themselves once they are told to."""
        self._running = {child.name: _Running(child) for child in children}
        self._stop_seconds = stop_seconds
        self._selector = selectors.DefaultSelector()
        self._stop_asked: float | None = None
        self._hurried = False
        self._awaited: str | None = None
        self._undo = contextlib.ExitStack()
        self._life: int = -1

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._selector.close)
            self._life, write_end = os.pipe()
            undo.callback(os.close, self._life)
            undo.callback(os.close, write_end)
            wakeup, signalled = os.pipe()
            undo.callback(os.close, wakeup)
            undo.callback(os.close, signalled)
            os.set_blocking(wakeup, False)
            os.set_blocking(signalled, False)
            for number in (*STOP_SIGNALS, signal.SIGCHLD):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    # Started by nohup, which wants us to outlive the terminal.
                    continue
                # The handler does nothing: Python writes the signal's number into the pipe that the loop waits on.
                undo.callback(signal.signal, number, signal.signal(number, _ignore))
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(signalled, warn_on_full_buffer=False))
            self._selector.register(wakeup, selectors.EVENT_READ, lambda: self._hear_signals(wakeup))
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
        return self._stop_asked is not None

    @property
    def hurried(self) -> bool:
        """Whether a second signal asked for the end at once."""
        return self._hurried

    def pid(self, name: str) -> int | None:
        """Return the process id of the child `name`; None while it has no process."""
        process = self._running[name].process
        return None if process is None else process.pid

    def start(self) -> None:
        """Start every child. Raises SupervisorError where one cannot be executed."""
        for running in self._running.values():
            try:
                self._launch(running)
            except OSError as error:
                raise SupervisorError(f"{running.child.name} cannot be started: {error}") from error

    def wait_ready(self, name: str, timeout: float) -> str | None:
        """Wait at most `timeout` seconds for the child's announcement, and return it; None where a stop was asked.

        Raises SupervisorError where the child ends first, or says nothing in that time.
        """
        deadline = time.monotonic() + timeout
        running = self._running[name]
        self._awaited = name
        try:
            while not self.stop_asked:
                if running.announced is not None:
                    return running.announced
                if running.process is None:
                    raise SupervisorError(f"{name} ended before it was ready ({running.ended}). See its output.")
                if time.monotonic() >= deadline:
                    raise SupervisorError(f"{name} was not ready within {timeout:g} seconds. See its output.")
                self._turn(deadline)
        finally:
            self._awaited = None
        return None

    def run(self) -> None:
        """Keep the children running until a signal asks for the end, then stop them."""
        while not self.stop_asked:
            self._turn(None)
        self.stop()

    def stop(self) -> None:
        """Tell every child to end (SIGTERM), and kill those that have not after `stop_seconds`, or a second signal."""
        if self._stop_asked is None:
            self._stop_asked = time.monotonic()
        for running in self._running.values():
            running.due = None
        for running in self._living():
            _process(running).terminate()
        deadline = time.monotonic() + self._stop_seconds
        while self._living() and not self._hurried and time.monotonic() < deadline:
            self._turn(deadline)
        for running in self._living():
            _log.warning("%s did not stop in time and is killed", running.child.name)
            # The child leads a group of its own, so that what it started goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(_process(running).pid, signal.SIGKILL)
        for running in self._living():
            with contextlib.suppress(subprocess.TimeoutExpired):
                _process(running).wait(REAP_SECONDS_MAX)
            self._forget(running, "killed")

    def _living(self) -> list[_Running]:
        return [running for running in self._running.values() if running.process is not None]

    def _turn(self, deadline: float | None) -> None:
        """Wait until something happens, `deadline` or the next restart, and do what it asks for."""
        times = [running.due for running in self._running.values() if running.due is not None]
        if deadline is not None:
            times.append(deadline)
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        for key, _ in self._selector.select(timeout):
            react: Callable[[], None] = key.data
            react()
        for running in self._running.values():
            if running.process is not None and running.process.poll() is not None:
                self._after_end(running)
            if running.due is not None and running.due <= time.monotonic():
                self._launch_again(running)

    def _launch(self, running: _Running) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        child = running.child
        env = {**(os.environ if child.env is None else child.env)}
        env |= {PARENT_FD: str(self._life), READY_FD: str(write_end)}
        try:
            process = subprocess.Popen(
                child.argv,
                env=env,
                stdin=subprocess.DEVNULL,
                pass_fds=(self._life, write_end),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        running.process, running.began, running.due = process, time.monotonic(), None
        running.ready_fd, running.said, running.announced = read_end, b"", None
        self._selector.register(read_end, selectors.EVENT_READ, lambda: self._hear_announcement(running))

    def _launch_again(self, running: _Running) -> None:
        try:
            self._launch(running)
        except OSError as error:
            self._plan_restart(running, str(error))

    def _after_end(self, running: _Running) -> None:
        process = _process(running)
        # What it announced just before its end is still in the pipe.
        self._hear_announcement(running)
        lived = time.monotonic() - running.began
        self._forget(running, _how_it_ended(process.returncode))
        if lived > LIVED_LONG_SECONDS:
            running.pause = RESTART_SECONDS_FIRST
        # One that fails its very start would only fail again: wait_ready says so.
        if not self.stop_asked and running.child.name != self._awaited:
            self._plan_restart(running, running.ended)

    def _plan_restart(self, running: _Running, ended: str) -> None:
        name, pause = running.child.name, running.pause
        _log.warning("%s ended unexpectedly (%s); restarting it in %.1f s", name, ended, pause)
        running.due = time.monotonic() + pause
        running.pause = min(2 * pause, RESTART_SECONDS_MAX)

    def _forget(self, running: _Running, ended: str) -> None:
        self._close_ready(running)
        running.process, running.announced, running.ended = None, None, ended

    def _close_ready(self, running: _Running) -> None:
        if running.ready_fd is not None:
            self._selector.unregister(running.ready_fd)
            os.close(running.ready_fd)
            running.ready_fd = None

    def _hear_announcement(self, running: _Running) -> None:
        if running.ready_fd is None:
            return
        try:
            heard = os.read(running.ready_fd, ANNOUNCEMENT_BYTES_MAX)
        except BlockingIOError:
            return
        running.said += heard
        line, newline, _ = running.said.partition(b"\n")
        if newline:
            running.announced = line.decode(errors="replace")
        if newline or not heard or len(running.said) >= ANNOUNCEMENT_BYTES_MAX:
            self._close_ready(running)

    def _hear_signals(self, wakeup: int) -> None:
        for number in os.read(wakeup, 4096):
            if number not in STOP_SIGNALS:
                continue
            now = time.monotonic()
            if self._stop_asked is None:
                self._stop_asked = now
            elif now - self._stop_asked > SAME_REQUEST_SECONDS:
                self._hurried = True


def die_with_parent(grace_seconds: float = STOP_SECONDS) -> None:
    """End this process when the supervisor that started it is gone: SIGTERM to itself, and after the grace by force.

    To be called once, early. Does nothing where no supervisor started this process.
    """
    number = os.environ.pop(PARENT_FD, None)
    if number is None:
        return
    life = int(number)
    os.set_inheritable(life, False)  # noqa: FBT003 - it takes no name

    def follow() -> None:
        os.read(life, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=follow, name="die-with-parent", daemon=True).start()


def announce_ready(message: str = "ready") -> None:
    """Tell the supervisor that this process can serve; the message, one line, is what `wait_ready` returns there.

    Does nothing where no supervisor started this process, and nothing the second time.
    """
    number = os.environ.pop(READY_FD, None)
    if number is None:
        return
    line = message.replace("\n", " ").encode()[: ANNOUNCEMENT_BYTES_MAX - 1]
    with contextlib.suppress(BrokenPipeError), open(int(number), "wb", buffering=0) as pipe:  # noqa: PTH123
        pipe.write(line + b"\n")


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit (128 + number) in the block, so that what it holds is released.

    For the main thread, and for what runs before or without a Supervisor.
    """

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with contextlib.ExitStack() as undo:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                undo.callback(signal.signal, number, signal.signal(number, leave))
        yield


def _ignore(number: int, frame: FrameType | None) -> None:
    """Stand in for a handler."""


def _process(running: _Running) -> subprocess.Popen[bytes]:
    assert running.process is not None  # noqa: S101 - the callers look first
    return running.process


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"
