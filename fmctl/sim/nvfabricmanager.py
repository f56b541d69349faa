# SPDX-License-Identifier: Apache-2.0
"""The simulated Fabric Manager behind the real one's command line, configuration file and log.

`sim.fmserver` serves the API. What the real program does with a wrong file or option is not known but for what is
measured, so such a start just fails, with the reason.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fmctl import process
from fmctl.core import fmconfig, fmlog
from fmctl.core.address import Address
from fmctl.core.errors import FmctlError
from fmctl.core.platform import ErrorFamily, Platform
from fmctl.sim import fmserver, listening
from fmctl.sim.faults import NO_FAULTS, Faults

VERSION = "580.95.05"
VERSION_VARIABLE = "FMCTL_SIM_FM_VERSION"
"""Environment variable by which it pretends to be of another version."""
SHARED_MODES = ("1", "2")
"""The values of FABRIC_MODE with which Fabric Manager serves partitions."""
BACKGROUND_TIMEOUT = 15.0

Tell = Callable[[str, str], None]
"""Takes a level and a text for the log."""


@dataclass(frozen=True)
class Start:
    """How it is started; `needs_port` lets a board with NVLink 5 be refused without the GUID of a port."""

    platform: Platform
    config: Path
    restart: bool = False
    guid: str = ""
    needs_port: bool = True
    latency: float = 0.0
    faults: Faults = NO_FAULTS


def version() -> str:
    """The line that -v prints."""
    return f"Fabric Manager version is : {os.environ.get(VERSION_VARIABLE) or VERSION}"


def run(start: Start, argv: list[str]) -> None:
    """Serve until SIGTERM or SIGINT; raises FmctlError where it cannot, or was not told the active partitions.

    `argv` starts the same once more, for a configuration that wants it in the background.
    """
    config = _read(start.config)
    if config.get("DAEMONIZE") == "1" and _FOREGROUND not in os.environ:
        return _go_to_background(argv, _api(config, start.config))
    with _log(config) as tell:
        try:
            _serve(start, config, tell)
        except FmctlError as error:
            tell("CRITICAL", f"{error}; Fabric Manager ends")
            raise
        tell("INFO", "Fabric Manager ends on request")


def _serve(start: Start, config: Mapping[str, str], tell: Tell) -> None:
    restart = start.restart or config.get("FABRIC_MODE_RESTART") == "1"
    mode = config.get("FABRIC_MODE", "0")
    tell("INFO", f"simulated {version()}, board {start.platform.name}, fabric mode {mode}")
    if start.platform.error_family is ErrorFamily.NVL5 and start.needs_port:
        _require_port(start.guid)
        tell("INFO", f"reaching the NVSwitches through port {start.guid}")
    options = fmserver.Options(
        platform=start.platform,
        listen=_api(config, start.config),
        restart=restart,
        state_file=Path(config.get("STATE_FILE_NAME") or "/tmp/fabricmanager.state"),  # noqa: S108 (as the real one)
        latency=start.latency,
        faults=start.faults,
        serves_partitions=mode in SHARED_MODES,
        tell=tell,
    )
    fmserver.run(options)


def _require_port(guid: str) -> None:
    try:
        valid = int(guid, 16) > 0
    except ValueError:
        valid = False
    if not valid:
        raise FmctlError(
            "the simulated Fabric Manager does not start",
            why=f"{guid!r} is no GUID of a management port, and NVLink 5 needs one",
            fix="add -g GUID",
        )


def _read(path: Path) -> dict[str, str]:
    try:
        return fmconfig.parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FmctlError(f"{path} cannot be read", why=str(reason), fix="name a configuration with -c") from error


def _api(config: Mapping[str, str], path: Path) -> Address:
    try:
        return fmconfig.api(config)
    except ValueError as error:
        raise FmctlError(
            "the simulated Fabric Manager does not start", why=str(error), fix=f"correct FM_CMD_* in {path}"
        ) from error


@contextlib.contextmanager
def _log(config: Mapping[str, str]) -> Iterator[Tell]:
    """The log, which begins again where it grows beyond its limit."""
    path = Path(config.get("LOG_FILE_NAME") or "/var/log/fabricmanager.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if config.get("LOG_APPEND_TO_LOG", "1") != "1":
            path.unlink(missing_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path,
            maxBytes=_number(config.get("LOG_FILE_MAX_SIZE"), 1024) << 20,
            backupCount=_number(config.get("LOG_MAX_ROTATE_COUNT"), 3),
            encoding="utf-8",
        )
    except OSError as error:
        raise FmctlError(
            f"{path} cannot be written", why=error.strerror or str(error), fix="correct LOG_FILE_NAME"
        ) from error
    thread = threading.get_native_id()

    def tell(level: str, text: str) -> None:
        line = fmlog.line(datetime.now(), level, thread, text)
        handler.emit(logging.makeLogRecord({"msg": line}))

    try:
        yield tell
    finally:
        handler.close()


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() else default


_FOREGROUND = "FMCTL_SIM_FOREGROUND"


def _go_to_background(argv: list[str], address: Address) -> None:
    """Leave one behind that takes calls, and end, as the real one does with DAEMONIZE=1."""
    os.environ[_FOREGROUND] = "1"
    child = process.Child(["/bin/sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *argv], lifeline=False)
    deadline = time.monotonic() + BACKGROUND_TIMEOUT
    while child.poll() is None and time.monotonic() < deadline:
        if listening.answers(address):
            return
        time.sleep(0.05)
    status = child.poll()
    child.kill()
    raise FmctlError(
        "the simulated Fabric Manager does not start in the background",
        why=f"it ended with status {status}" if status is not None else "it does not listen",
        fix="see its log",
    )
