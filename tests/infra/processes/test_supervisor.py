from __future__ import annotations

import os
import signal
import time
from typing import Final

import psutil
import pytest

from infra.processes.supervisor import announce_ready, die_with_parent, exit_on_signals
from tests.infra.programs import DEADLINE_SECONDS, Program, running, wait_until_gone

pytestmark = pytest.mark.long("programs start, fail, and have time to end")

# Every child says when it is up and when it is told to stop, so that a test can wait for either. It says so in one
# write each, because a handler may interrupt a print, and lines of several processes must not mix.
CHILD: Final = r"""
import os, signal, sys
from infra.processes.supervisor import announce_ready, die_with_parent

name = sys.argv[1]

def leave(number, frame):
    os.write(1, f"{name} got {signal.Signals(number).name}\n".encode())
    sys.exit(0)

signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
die_with_parent()
os.write(1, f"{name} up {os.getpid()}\n".encode())
announce_ready(f"{name} at your service")
while True:
    signal.pause()
"""

# One that does not stop when it is told to.
STUBBORN: Final = r"""
import os, signal, sys
from infra.processes.supervisor import announce_ready, die_with_parent

signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"stubborn got SIGTERM\n"))
die_with_parent(grace_seconds=0.2)
os.write(1, f"stubborn up {os.getpid()}\n".encode())
announce_ready()
while True:
    signal.pause()
"""

PRELUDE: Final = f"""
import functools, logging, sys
from infra.processes import supervisor
from infra.processes.supervisor import Child, Supervisor, SupervisorError

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
print = functools.partial(print, flush=True)

def child(name):
    return Child(name, [sys.executable, "-c", {CHILD!r}, name])

def other(name, code):
    return Child(name, [sys.executable, "-c", code])

STUBBORN = {STUBBORN!r}
"""

TWO_CHILDREN: Final = f"""{PRELUDE}
with Supervisor([child("api"), child("worker")]) as up:
    up.start()
    print(up.wait_ready("api", 20))
    print(up.wait_ready("worker", 20))
    up.run()
print("all stopped")
"""


def pid_of(program: Program, name: str) -> int:
    return int(program.line(f"{name} up ").split()[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_signal_stops_every_child_cleanly(number: signal.Signals) -> None:
    with running(TWO_CHILDREN) as program:
        program.line("worker at your service")
        began = time.monotonic()
        # As a terminal does it: to the whole group, which the children are not part of.
        os.killpg(program.process.pid, number)
        lines = program.rest()

    assert time.monotonic() - began < 5
    assert program.process.returncode == 0
    assert [line for line in sorted(lines) if " got " in line] == ["api got SIGTERM", "worker got SIGTERM"]
    assert lines[-1] == "all stopped"


def test_the_same_request_delivered_twice_is_one_request() -> None:
    with running(TWO_CHILDREN) as program:
        program.line("worker at your service")
        program.process.send_signal(signal.SIGTERM)
        program.process.send_signal(signal.SIGINT)
        lines = program.rest()

    assert program.process.returncode == 0
    assert not [line for line in lines if "killed" in line]


def test_a_child_that_does_not_stop_is_killed_in_time() -> None:
    script = f"""{PRELUDE}
with Supervisor([other("stubborn", STUBBORN)], stop_seconds=0.3) as up:
    up.start()
    up.run()
"""
    with running(script) as program:
        pid = pid_of(program, "stubborn")
        program.process.send_signal(signal.SIGTERM)
        program.line("stubborn got SIGTERM")
        program.line("stubborn did not stop in time and is killed")
        assert program.process.wait(DEADLINE_SECONDS) == 0
        assert not psutil.pid_exists(pid)


def test_a_second_signal_kills_at_once() -> None:
    script = f"""{PRELUDE}
supervisor.SAME_REQUEST_SECONDS = 0
with Supervisor([other("stubborn", STUBBORN)], stop_seconds=600) as up:
    up.start()
    up.run()
"""
    with running(script) as program:
        pid = pid_of(program, "stubborn")
        program.process.send_signal(signal.SIGTERM)
        program.line("stubborn got SIGTERM")
        program.process.send_signal(signal.SIGTERM)
        program.line("stubborn did not stop in time and is killed")
        assert program.process.wait(DEADLINE_SECONDS) == 0
        assert not psutil.pid_exists(pid)


def test_a_killed_child_is_started_again_and_the_other_is_left_alone() -> None:
    with running(TWO_CHILDREN) as program:
        program.line("worker at your service")
        pids = {line.split()[0]: int(line.split()[-1]) for line in program.printed if " up " in line}
        os.kill(pids["api"], signal.SIGKILL)
        program.line("api ended unexpectedly (killed by SIGKILL); restarting it in 0.2 s")
        again = pid_of(program, "api")

        assert again != pids["api"]
        assert psutil.pid_exists(pids["worker"])


def test_a_child_that_keeps_failing_is_started_ever_less_often() -> None:
    script = f"""{PRELUDE}
with Supervisor([other("broken", "raise SystemExit(3)")]) as up:
    up.start()
    up.run()
"""
    with running(script) as program:
        for pause in ("0.2", "0.4", "0.8"):
            program.line(f"broken ended unexpectedly (exit code 3); restarting it in {pause} s")
        # Also between two attempts a stop is a stop.
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(DEADLINE_SECONDS) == 0


def test_children_end_when_the_supervisor_is_killed_and_so_do_those_that_do_not_listen() -> None:
    script = f"""{PRELUDE}
with Supervisor([child("api"), other("stubborn", STUBBORN)]) as up:
    up.start()
    up.wait_ready("api", 20)
    up.wait_ready("stubborn", 20)
    print("both ready")
    up.run()
"""
    with running(script) as program:
        program.line("both ready")
        pids = [child.pid for child in psutil.Process(program.process.pid).children()]
        program.process.kill()
        for pid in pids:
            wait_until_gone(pid)
        lines = program.rest()

    assert len(pids) == 2
    assert {"api got SIGTERM", "stubborn got SIGTERM"} <= set(lines)


def test_a_child_that_fails_before_it_is_ready_is_reported_and_not_tried_again() -> None:
    script = f"""{PRELUDE}
try:
    with Supervisor([child("worker"), other("api", "raise SystemExit(3)")]) as up:
        up.start()
        up.wait_ready("api", 20)
except SupervisorError as error:
    print("refused:", error)
"""
    with running(script) as program:
        lines = program.rest()

    assert lines[-1] == "refused: api ended before it was ready (exit code 3). See its output."
    assert not [line for line in lines if "restarting" in line]


def test_a_child_that_stays_silent_is_not_waited_for_without_end() -> None:
    script = f"""{PRELUDE}
try:
    with Supervisor([other("api", "import signal; signal.pause()")]) as up:
        up.start()
        up.wait_ready("api", 0.1)
except SupervisorError as error:
    print("refused:", error)
"""
    with running(script) as program:
        assert program.rest() == ["refused: api was not ready within 0.1 seconds. See its output."]


def test_a_stop_that_is_asked_for_during_the_start_ends_the_waiting() -> None:
    script = f"""{PRELUDE}
with Supervisor([other("api", "import signal; print('api up 0', flush=True); signal.pause()")]) as up:
    up.start()
    print("ready:", up.wait_ready("api", 600))
    up.run()
"""
    with running(script) as program:
        program.line("api up")
        program.process.send_signal(signal.SIGTERM)
        assert program.rest()[-1] == "ready: None"
        assert program.process.returncode == 0


def test_a_child_that_cannot_be_executed_is_reported() -> None:
    script = f"""{PRELUDE}
try:
    with Supervisor([Child("api", ["/no/such/program"])]) as up:
        up.start()
except SupervisorError as error:
    print("refused:", error)
"""
    with running(script) as program:
        assert program.rest() == [
            "refused: api cannot be started: [Errno 2] No such file or directory: '/no/such/program'"
        ]


def test_an_environment_that_is_given_is_the_whole_environment() -> None:
    script = f"""{PRELUDE}
import os
os.environ["SECRET"] = "hunter2"
code = "import os; print('sees', sorted(n for n in os.environ if n in ('SECRET', 'GIVEN')), flush=True)"
with Supervisor([Child("api", [sys.executable, "-c", code], {{"GIVEN": "1"}})]) as up:
    up.start()
    up.run()
"""
    with running(script) as program:
        assert program.line("sees") == "sees ['GIVEN']"


def test_without_a_supervisor_a_child_runs_as_any_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARKLEDGER_PARENT_FD", raising=False)
    monkeypatch.delenv("SPARKLEDGER_READY_FD", raising=False)

    die_with_parent()
    announce_ready()


def test_within_the_block_sigterm_becomes_an_exit_and_afterwards_it_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(SystemExit) as left, exit_on_signals():
        signal.raise_signal(signal.SIGTERM)

    assert left.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
