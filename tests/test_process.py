# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmctl import process
from fmctl.process import Child, CommandFailed, Helper
from tests.support import children, eventually

PYTHON = sys.executable

PARENT = """
import sys, threading
from fmctl.process import Child
child = Child([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
threading.Event().wait()
"""

LISTENER = "from fmctl import process; import threading; process.hold_lifeline(); threading.Event().wait()"
STUBBORN = (
    "import signal, threading; signal.signal(15, signal.SIG_IGN); "
    "from fmctl import process; process.hold_lifeline(0.2); threading.Event().wait()"
)


def test_a_command_s_output_is_returned() -> None:
    assert process.run(["/bin/echo", "hello"], timeout=10) == "hello\n"


@pytest.mark.parametrize(
    ("argv", "timeout", "reason"),
    [
        (["/no/such/program"], 10, "cannot be started: No such file"),
        (["/bin/sh", "-c", "echo broken >&2; exit 3"], 10, "failed with status 3: broken"),
        (["/bin/sleep", "60"], 0.2, "did not end within 0.2 s"),
    ],
    ids=["missing", "failing", "slow"],
)
def test_a_failed_command_says_why(argv: list[str], timeout: float, reason: str) -> None:
    with pytest.raises(CommandFailed) as failure:
        process.run(argv, timeout=timeout)
    assert reason in str(failure.value)


def is_alive(child: Path) -> bool:
    """Whether the process that wrote its number there runs."""
    return Path(f"/proc/{child.read_text().strip()}").exists()


TIDY = 'trap \'echo tidied >"$0"; exit\' TERM; sleep 60 & echo $! >"$1"; wait'


@pytest.mark.parametrize("grace", [0.0, 10.0])
def test_a_command_that_is_cut_short_ends_with_all_it_started_and_may_tidy(tmp_path: Path, grace: float) -> None:
    mark, child = tmp_path / "tidied", tmp_path / "child"
    began = time.monotonic()
    with pytest.raises(CommandFailed, match="did not end within"):
        process.run(["/bin/sh", "-c", TIDY, str(mark), str(child)], timeout=0.5, grace=grace)
    assert time.monotonic() - began < 8.0
    assert mark.exists() is (grace > 0)
    eventually(lambda: not is_alive(child))


def test_one_that_does_not_end_in_its_grace_is_killed(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = "trap '' TERM; echo $$ >\"$0\"; while :; do sleep 1; done"
    with pytest.raises(CommandFailed, match="did not end within"):
        process.run(["/bin/sh", "-c", code, str(child)], timeout=0.5, grace=0.3)
    eventually(lambda: not is_alive(child))


def test_an_interrupted_process_ends_its_command_first(tmp_path: Path) -> None:
    mark, child = tmp_path / "tidied", tmp_path / "child"
    code = (
        "import signal, sys; from fmctl import process; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "process.run(['/bin/sh', '-c', *sys.argv[1:]], timeout=60, grace=10)"
    )
    with subprocess.Popen([PYTHON, "-c", code, TIDY, str(mark), str(child)], stderr=subprocess.PIPE) as interrupted:
        eventually(lambda: child.exists() and child.read_text())
        interrupted.send_signal(signal.SIGINT)
        interrupted.communicate(timeout=15)
    assert mark.exists()
    eventually(lambda: not is_alive(child))


def test_an_attempt_tells_status_and_output() -> None:
    assert process.attempt(["/bin/sh", "-c", "echo done; exit 3"], timeout=10) == (3, b"done\n")


def test_an_attempt_that_cannot_start_says_why() -> None:
    with pytest.raises(CommandFailed, match="cannot be started: No such file"):
        process.attempt(["/no/such/program"], timeout=10)


def test_an_attempt_past_its_deadline_is_killed_and_reaped_later(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = "import os, signal, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').write(str(os.getpid()))"
    before = time.monotonic()
    assert process.attempt([PYTHON, "-c", f"{code}; signal.pause()", str(started)], timeout=0.5) is None
    assert time.monotonic() - before < 5
    eventually(lambda: not Path(f"/proc/{started.read_text()}").exists())


def test_what_an_attempt_started_is_killed_with_it(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"/bin/sleep 60 & echo $! >{started}; wait"
    assert process.attempt(["/bin/sh", "-c", script], timeout=0.5) is None
    eventually(lambda: not Path(f"/proc/{started.read_text().strip()}").exists())


ECHO = """
import os, struct, sys
for line in sys.stdin.buffer:
    if line == b"sleep\\n":
        import signal; signal.pause()
    if line == b"end\\n":
        break
    os.write(1, struct.pack("!II", os.getpid(), len(line)) + line)
"""
HEADER = struct.Struct("!II")


def test_a_helper_answers_one_request_after_the_other() -> None:
    helper = Helper([PYTHON, "-c", ECHO])
    first, second = (helper.ask(line, HEADER, timeout=20) for line in (b"a\n", b"b" * 100_000 + b"\n"))
    assert first and second
    assert (first[0], first[1], second[1]) == (second[0], b"a\n", b"b" * 100_000 + b"\n")
    assert helper.poll() is None
    helper.ask(b"sleep\n", HEADER, timeout=0.1)


def test_a_helper_is_stopped_by_the_end_of_its_input() -> None:
    helper = Helper([PYTHON, "-c", ECHO])
    assert helper.ask(b"a\n", HEADER, timeout=20)
    helper.stop(20)
    assert helper.poll() == 0


def test_a_helper_past_the_deadline_is_killed_and_reaped() -> None:
    helper = Helper([PYTHON, "-c", ECHO])
    answer = helper.ask(b"a\n", HEADER, timeout=20)
    assert answer
    assert helper.ask(b"sleep\n", HEADER, timeout=0.2) is None
    eventually(lambda: not Path(f"/proc/{answer[0]}").exists())


def test_a_helper_that_ends_says_so() -> None:
    helper = Helper([PYTHON, "-c", ECHO])
    with pytest.raises(CommandFailed, match="does not answer: it has ended"):
        helper.ask(b"end\n", HEADER, timeout=20)
    with pytest.raises(CommandFailed, match="does not answer"):
        helper.ask(b"a\n", HEADER, timeout=20)


def test_a_helper_that_cannot_start_says_why() -> None:
    with pytest.raises(CommandFailed, match="cannot be started: No such file"):
        Helper(["/no/such/program"])


def test_a_helper_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    code = f"""
import os, struct
from fmctl.process import Helper
helper = Helper([{PYTHON!r}, "-c", {ECHO!r}])
open({str(number)!r}, "w").write(str(helper.ask(b"a\\n", struct.Struct("!II"), timeout=20)[0]))
os._exit(0)
"""
    process.run([PYTHON, "-c", code], timeout=30)
    eventually(lambda: not Path(f"/proc/{number.read_text()}").exists())


def test_a_child_that_cannot_start_says_why() -> None:
    with pytest.raises(CommandFailed, match="cannot be started: No such file"):
        Child(["/no/such/program"])


def test_a_child_is_stopped_when_its_block_ends() -> None:
    with Child(["/bin/sleep", "60"]) as child:
        assert child.poll() is None
    assert child.poll() == -signal.SIGTERM


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = "import signal, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w').close(); signal.pause()"
    child = Child([PYTHON, "-c", code, str(ready)])
    eventually(ready.exists)
    child.stop(grace=0.2)
    assert child.poll() == -signal.SIGKILL


def test_ctrl_c_reaches_the_parent_alone() -> None:
    with Child(["/bin/sleep", "60"]) as child:
        assert os.getpgid(child.pid) != os.getpgid(0)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("code", [LISTENER, STUBBORN], ids=["willing", "stubborn"])
def test_a_killed_parent_takes_its_child_along(code: str) -> None:
    with Child([PYTHON, "-c", PARENT, code]) as parent:
        (grandchild,) = eventually(lambda: children(parent.pid))
        eventually(lambda: len(list(Path(f"/proc/{grandchild}/task").iterdir())) > 1)
        parent.kill()
        eventually(lambda: is_gone(grandchild))


def test_a_process_that_nobody_started_has_no_lifeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(process.LIFELINE, raising=False)
    process.hold_lifeline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(number: signal.Signals) -> None:
    with process.Termination() as termination:
        assert not termination.wait(0)
        os.kill(os.getpid(), number)
        assert termination.wait(5)


def test_signals_mean_what_they_did_before_once_the_block_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with process.Termination():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_comes_just_before_the_wait_is_not_lost(tmp_path: Path) -> None:
    code = """
import os, random, signal, threading, time
from fmctl.process import Termination

def send():
    while go.wait():
        go.clear()
        until = time.perf_counter() + random.random() * 6e-5
        while time.perf_counter() < until:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        sent.set()

go, sent, lost = threading.Event(), threading.Event(), 0
threading.Thread(target=send, daemon=True).start()
for _ in range(300):
    with Termination() as termination:
        sent.clear()
        go.set()
        for _ in range(random.randrange(200)):
            pass
        lost += not termination.wait(0.1)
        sent.wait()
print(lost)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
