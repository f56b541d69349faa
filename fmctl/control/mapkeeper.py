# SPDX-License-Identifier: Apache-2.0
"""Keeps the GPU map up to date, in a thread of its own: a GPU that is asked may take seconds to answer."""

from __future__ import annotations

import logging
import threading

from fmctl.control.discovery import NoBoard
from fmctl.control.gpumap import GpuMaps
from fmctl.core.errors import FmctlError

log = logging.getLogger(__name__)


class MapKeeper:
    """As a context manager it runs for as long as the block, which ends without waiting for a GPU."""

    def __init__(self, maps: GpuMaps, *, interval: float) -> None:
        """It looks every `interval` seconds whether there is something to import or to discover."""
        self._maps = maps
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="GPU map", daemon=True)
        self._told = ""

    def _run(self) -> None:
        while True:
            self._look()
            if self._stopping.wait(self._interval):
                return

    def _look(self) -> None:
        try:
            self._maps.refresh()
            told = ""
        except NoBoard:
            return
        except FmctlError as error:
            told = str(error)
        except Exception:
            log.exception("the GPU map was not looked at")
            return
        if told and told != self._told:
            log.warning("the GPU map is not up to date: %s", told)
        self._told = told

    def __enter__(self) -> MapKeeper:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=1.0)
