# SPDX-License-Identifier: Apache-2.0
"""`fmctl hook qemu`: what libvirt calls before it starts a domain, and after. It always ends within its time.

A failure keeps the domain from starting. Where the daemon does not answer, or is that of a simulated host, every
function of the board counts as managed, and every one of NVIDIA's: such a domain does not start, and any other does.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from fmctl.cli import options
from fmctl.cli.options import Connection
from fmctl.core.address import Address
from fmctl.core.asking import DECIDES, MAX_DOCUMENT, NVIDIA, Asking, HostDevice, Verdict
from fmctl.core.errors import FmctlError

ANSWER_WITHIN = 3.5
"""Seconds from here to a decision. Five are promised: the rest is for a busy machine to start this process."""
CALL_MARGIN = 0.5
"""Seconds before that at which a call to the daemon is given up."""
READY_TIMEOUT = 60.0
"""Seconds that the daemon has to get a domain's GPUs ready, its lease made first where a setting says so."""
MANAGED = Path("run", "fmctl", "managed-functions")
"""The daemon's list of the board's functions, which outlives it."""


@click.group()
def hook() -> None:
    """Answer libvirt's hooks.

    Libvirt calls this, and nobody else need.
    """


@hook.command()
@click.argument("name")
@click.argument("operation")
@click.argument("sub_operation", metavar="SUBOPERATION")
@click.argument("extra")
@click.option("--allow-simulated", is_flag=True, help="Let the daemon of a simulated host decide.")
@click.option("--within", type=click.FloatRange(1, 60), default=ANSWER_WITHIN, hidden=True)
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"), hidden=True)
@options.connection
@click.pass_context
def qemu(
    context: click.Context,
    connection: Connection,
    name: str,
    operation: str,
    sub_operation: str,
    extra: str,
    within: float,
    root: Path,
    *,
    allow_simulated: bool,
) -> None:
    """Decide whether the domain NAME may start.

    Its document is read from standard input, and exit status 1 keeps it from starting. SUBOPERATION and EXTRA are as
    libvirt gives them, and change nothing.
    """
    call = HookCall(
        operation,
        lambda: sys.stdin.buffer.read(MAX_DOCUMENT + 1),
        lambda devices: managed(devices, root),
        connection.address or options.DEFAULT_ADDRESS,
        allow_simulated=allow_simulated,
        within=within,
    )
    refusal = call.result()
    if refusal:
        about = "is refused" if operation in DECIDES else "would be refused"
        click.echo(f"fmctl: the domain {name} {about}: {' '.join(refusal.split())}", err=True)
        context.exit(int(operation in DECIDES))


def managed(devices: Iterable[HostDevice], root: Path) -> list[str]:
    """Which of these functions count as managed while no daemon can tell: those it told of, and NVIDIA's."""
    told: set[str] = set()
    with contextlib.suppress(OSError, ValueError):
        told.update((root / MANAGED).read_text("ascii").split())
    return sorted({str(each.bdf) for each in devices if str(each.bdf) in told or _is_nvidia(str(each.bdf), root)})


def _is_nvidia(address: str, root: Path) -> bool:
    """Whether a function of the host is NVIDIA's; so is one that cannot be asked and is there."""
    path = root / "sys" / "bus" / "pci" / "devices" / address / "vendor"
    try:
        return int(path.read_text("ascii"), 16) == NVIDIA
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


class HookCall:
    """One call of the hook, in a thread that is left where its time is over."""

    def __init__(
        self,
        operation: str,
        read: Callable[[], bytes],
        managed: Callable[[Iterable[HostDevice]], list[str]],
        address: Address,
        *,
        allow_simulated: bool = False,
        within: float = ANSWER_WITHIN,
    ) -> None:
        """`read` gives the domain's document, and `managed` tells which functions count where the daemon does not."""
        self._operation = operation
        self._read = read
        self._managed = managed
        self._address = address
        self._allow_simulated = allow_simulated
        self._within = within
        self._until = time.monotonic() + within
        self._done = threading.Event()
        self._refusal = "its document was not read in time"
        self._protected: list[str] = []

    def result(self) -> str:
        """Why the domain is refused; empty where it may start."""
        threading.Thread(target=self._run, name="hook", daemon=True).start()
        while (left := self._until - time.monotonic()) > 0 and not self._done.wait(left):
            pass
        return self._refusal

    def _run(self) -> None:
        try:
            self._refusal = self._decided()
        except FmctlError as error:
            self._refusal = self._closed(str(error), error.fix)
        except Exception as error:
            self._refusal = self._closed(f"a defect of fmctl: {type(error).__name__}: {error}")
        self._done.set()

    def _decided(self) -> str:
        content = self._read()
        if len(content) > MAX_DOCUMENT:
            return f"its document has more than {MAX_DOCUMENT} bytes"
        try:
            xml = content.decode("utf-8")
            devices = Asking.from_xml(xml).devices
        except (ValueError, RecursionError) as error:
            return f"its document cannot be read: {error}"
        self._protected = self._managed(devices)
        self._refusal = self._closed("fmctld does not answer in time")
        return self._asked(xml)

    def _asked(self, xml: str) -> str:
        """What the daemon decides; raises FmctlError where it does not."""
        from fmctl.rpc.hook import HookClient

        client = HookClient(self._address)
        answer = client.check(self._operation, xml, timeout=self._within - CALL_MARGIN)
        if answer.simulated and not self._allow_simulated:
            return self._closed("fmctld is that of a simulated host")
        if answer.decision.verdict is Verdict.PREPARE:
            self._refusal = "its GPUs were not ready in time"
            self._until = time.monotonic() + READY_TIMEOUT
            try:
                answer = client.ready(xml, timeout=READY_TIMEOUT - 1)
            except FmctlError as error:
                return f"its GPUs are not ready: {error}"
        if answer.decision.warning:
            click.echo(f"fmctl: {answer.decision.warning}", err=True)
        if answer.decision.verdict is Verdict.START:
            return ""
        return _with_fix(answer.decision.why or "fmctld refuses it", answer.decision.fix)

    def _closed(self, why: str, fix: str = "") -> str:
        """What is decided without the daemon."""
        if not self._protected:
            return ""
        return _with_fix(f"{why}, and it names {', '.join(self._protected)}", fix or "see that fmctld runs")


def _with_fix(why: str, fix: str) -> str:
    return f"{why} ({fix})" if fix else why
