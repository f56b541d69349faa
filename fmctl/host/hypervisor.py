# SPDX-License-Identifier: Apache-2.0
"""Libvirt: the port `Hypervisor`, and the one place that imports libvirt. `sim.hypervisor` is its other side.

Any call into libvirt may hang: libvirtd tells nothing of a domain while a hook runs for it, and nothing at all while
it is stopped. So each call goes through `host.calls`, over a connection of its own, which takes half a millisecond.
No two threads call over one connection: with libvirt's client before 10.4 that may crash the process (CVE-2024-4418).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fmctl.core.domain import Domain, DomainState, End, refusal, unreadable
from fmctl.core.errors import FmctlError, HypervisorUnreachable, OutcomeUnknown
from fmctl.host.calls import Attempt, Calls, NoAnswer
from fmctl.host.listener import Listener

try:
    import libvirt
except ImportError as error:
    raise FmctlError(
        "libvirt cannot be reached",
        why="its Python module is not installed",
        fix="pip install 'fmctl[host]', or install your distribution's python3-libvirt",
    ) from error

log = logging.getLogger(__name__)

T = TypeVar("T")


class Libvirt:
    """The libvirt at `uri`."""

    def __init__(self, uri: str, *, keepalive: tuple[int, int] = (5, 3)) -> None:
        """`keepalive`: seconds between two pings, and how many without an answer break the connection for events."""
        _serve_events()
        self._uri = uri
        self._keepalive = keepalive
        self._calls = Calls()
        self._reboots = _Reboots()
        self._hearers: tuple[Callable[[End], None], ...] = ()
        self._listener = Listener(self._ear, self._calls)
        self._closed = False

    def domains(self, *, timeout: float) -> tuple[Domain, ...]:
        """Every domain that has a process, by name."""
        began = time.time()
        try:
            return self._reboots.added_to(self._call(listed, timeout=timeout), began)
        except libvirt.libvirtError as error:
            raise self._unreachable(str(error)) from error

    def create(self, xml: str, *, timeout: float) -> Domain:
        """Start a transient domain, whose document libvirt checks against its schema first.

        Raises DomainRefused where nothing runs, and OutcomeUnknown where libvirt was asked and does not answer.
        """
        try:
            name = Domain.from_xml(xml).name
        except ValueError as error:
            raise unreadable(error) from error
        try:
            return self._call(lambda connection: started(connection, xml), timeout=timeout, change=f"start {name}")
        except libvirt.libvirtError as error:
            raise refusal(name, str(error)) from error

    def shutdown(self, uuid: str, *, timeout: float) -> None:
        """Press a domain's power button; does nothing where there is no such domain."""
        power_button = libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        self._change(uuid, "shut down", lambda domain: domain.shutdownFlags(power_button), timeout)

    def destroy(self, uuid: str, *, timeout: float) -> None:
        """End a domain's process; does nothing where there is no such domain.

        Libvirt sends it SIGTERM, ten seconds later SIGKILL, and then waits five seconds more and two for each hostdev.
        """
        self._change(uuid, "end", lambda domain: domain.destroy(), timeout)

    def watch(self, changed: Callable[[], None], ended: Callable[[End], None] = lambda end: None) -> None:
        """Call `changed` soon, and whenever domains or the connection may have changed, from a thread of its own.

        `ended` is called for each end from the thread of events, so it must not wait.
        """
        self._hearers = (*self._hearers, ended)
        self._listener.watch(changed)

    @property
    def hearing(self) -> int:
        """Differs after every moment in which a domain may have ended unheard; 0 in such a moment."""
        return self._listener.hearing

    def close(self) -> None:
        """Let go of the connection; domains go on, and later calls are refused."""
        self._closed = True
        self._listener.close()

    def _ear(self, changed: Callable[[], None]) -> _Ear:
        return _Ear(self._uri, self._keepalive, _Told(changed, self._reboots.note, self._ended))

    def _ended(self, end: End) -> None:
        for ended in self._hearers:
            ended(end)

    def _change(self, uuid: str, verb: str, act: Callable[[Any], object], timeout: float) -> None:
        """Do something to a domain, unless it is gone."""
        change = f"{verb} the domain {uuid}"
        try:
            self._call(lambda connection: act(connection.lookupByUUIDString(uuid)), timeout=timeout, change=change)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _GONE:
                raise FmctlError(f"libvirt does not {change}", why=str(error), fix="see libvirt's log") from error

    def _call(self, act: Callable[[Any], T], *, timeout: float, change: str = "") -> T:
        """What `act` makes of libvirt's connection; raises libvirtError where libvirt answered with one.

        Raises OutcomeUnknown where the change may have begun, and else HypervisorUnreachable.
        """

        def work(attempt: Attempt) -> T:
            with _connected(self._uri) as connection:
                attempt.begin()
                return act(connection)

        if self._closed:
            raise self._unreachable("the connection was closed")
        try:
            return self._calls.run(work, timeout=timeout)
        except NoAnswer as silence:
            if not (silence.begun and change):
                raise self._unreachable(str(silence)) from silence
            raise OutcomeUnknown(
                f"whether libvirt did {change} is not known", why=str(silence), fix="list the domains again"
            ) from silence

    def _unreachable(self, why: str) -> HypervisorUnreachable:
        return HypervisorUnreachable(
            f"libvirt does not answer at {self._uri}",
            why=why,
            fix="see that libvirtd runs and that this user may use it, by `virsh list`",
        )


@contextlib.contextmanager
def _connected(uri: str) -> Iterator[Any]:
    """A connection; raises NoAnswer where there is none, or where it breaks."""
    connection = _opened(uri)
    try:
        yield connection
    except libvirt.libvirtError as error:
        if connection.isAlive():
            raise
        raise NoAnswer(str(error), begun=True) from error
    finally:
        _close(connection)


def _opened(uri: str) -> Any:
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise NoAnswer(str(error)) from error


def _close(connection: Any) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


class _Reboots:
    """When guests were last heard to boot again, each by its domain's UUID and instance.

    What happens while no connection listens is never heard of.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[tuple[str, int], float] = {}

    def note(self, uuid: str, instance: int) -> None:
        """A guest boots again, now."""
        with self._lock:
            self._heard[uuid, instance] = time.time()

    def added_to(self, domains: tuple[Domain, ...], began: float) -> tuple[Domain, ...]:
        """The domains with what was heard of them; of others nothing is kept that was heard before the list began."""
        listed = {(domain.uuid, domain.instance) for domain in domains}
        with self._lock:
            self._heard = {key: at for key, at in self._heard.items() if key in listed or at >= began}
            return tuple(replace(each, rebooted=self._heard.get((each.uuid, each.instance))) for each in domains)


@dataclass(frozen=True)
class _Told:
    """Who is told of events; `rebooted` hears the UUID and the instance of a domain whose guest boots again."""

    changed: Callable[[], None]
    rebooted: Callable[[str, int], None]
    ended: Callable[[End], None]


class _Ear:
    """A connection that tells of events, and of its end; once it is made, only the event loop uses it."""

    def __init__(self, uri: str, keepalive: tuple[int, int], told: _Told) -> None:
        """Listen, or raise NoAnswer."""
        self.broken = False
        self._told = told
        self._shut_down: set[str] = set()
        self._events: list[int] = []
        self._connection = _opened(uri)
        try:
            self._listen(keepalive)
        except libvirt.libvirtError as error:
            self.close()
            raise NoAnswer(str(error)) from error

    def _listen(self, keepalive: tuple[int, int]) -> None:
        self._connection.registerCloseCallback(self._lost, None)
        callbacks = {
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: self._lives,
            libvirt.VIR_DOMAIN_EVENT_ID_REBOOT: self._reboots,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: self._gains,
        }
        for event, callback in callbacks.items():
            self._events.append(self._connection.domainEventRegisterAny(None, event, callback, None))
        try:
            self._connection.setKeepAlive(*keepalive)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise

    # What the events themselves say; libvirt is asked nothing here.

    def _lives(self, connection: object, domain: Any, event: int, detail: int, opaque: object) -> None:
        """A domain came to a point of its life; one that `virsh destroy` ends has lost its instance by then."""
        uuid, instance = domain.UUIDString(), max(domain.ID(), 0)
        if event in _ENDS:
            shut_down = uuid in self._shut_down and (event, detail) == _STOPPED_SHUT_DOWN
            self._told.ended(End(uuid, instance, shut_down))
        if (event, detail) == _GUEST_SHUTS_DOWN:
            self._shut_down.add(uuid)
        elif event in (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, *_ENDS):
            self._shut_down.discard(uuid)
        self._told.changed()

    def _reboots(self, connection: object, domain: Any, opaque: object) -> None:
        self._told.rebooted(domain.UUIDString(), domain.ID())
        self._told.changed()

    def _gains(self, *event: object) -> None:
        self._told.changed()

    def _lost(self, *reason: object) -> None:
        self.broken = True
        self._told.changed()

    def close(self) -> None:
        """Let go of the pings, which the event loop sends, of the callbacks, which hold the connection, and of it."""
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.setKeepAlive(0, 0)
        for event in self._events:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(event)
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.unregisterCloseCallback()
        _close(self._connection)


_GUEST_SHUTS_DOWN = (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST)
"""The event and its detail where a guest switches itself off, and no signal ends its process."""
_STOPPED_SHUT_DOWN = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN)
_ENDS = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_CRASHED)
"""The events after which a domain is at its end, or counts so because its guest crashed."""

_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
"""Libvirt's errors for a domain that it does not know, or that has no process."""

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}
"""All but the state of a domain whose process has ended."""


def listed(connection: Any) -> tuple[Domain, ...]:
    """Every active domain that is still there when it is asked about itself."""
    active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    described = (_described(domain) for domain in active)
    return tuple(sorted((domain for domain in described if domain is not None), key=lambda domain: domain.name))


def _described(domain: Any) -> Domain | None:
    """A domain as it is now; None where it has ended."""
    try:
        state = _STATES.get(domain.state()[0])
        return None if state is None else Domain.from_xml(domain.XMLDesc(), state)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def started(connection: Any, xml: str) -> Domain:
    """The domain, started; raises DomainRefused where it has ended already, and NoAnswer where that cannot be told."""
    domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_VALIDATE)
    try:
        described = _described(domain)
    except libvirt.libvirtError as error:
        raise NoAnswer(str(error), begun=True) from error
    if described is None:
        raise refusal(domain.name(), "it ended as soon as it had started")
    return described


_starting = threading.Lock()
_serving = threading.Event()


def _serve_events() -> None:
    """Start this process's one event loop, which libvirt wants before the first connection."""
    with _starting:
        if _serving.is_set():
            return
        libvirt.registerErrorHandler(lambda context, error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, name="libvirt events", daemon=True).start()
        _serving.set()


def _run_events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            log.exception("libvirt's event loop failed")
            threading.Event().wait(1.0)
