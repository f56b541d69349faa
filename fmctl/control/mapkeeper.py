# SPDX-License-Identifier: Apache-2.0
"""Keeps the GPU map up to date, as the turn of a loop of its own: a GPU that is asked may take seconds to answer."""

from __future__ import annotations

import logging

from fmctl.control.discovery import NoBoard
from fmctl.control.gpumap import GpuMaps
from fmctl.core.errors import FmctlError

log = logging.getLogger(__name__)


class MapKeeper:
    """Looks whether there is something to import or to discover, and tells the log once what is in the way."""

    def __init__(self, maps: GpuMaps) -> None:
        self._maps = maps
        self._told = ""

    def look(self) -> None:
        """Bring the map up to date as far as that is possible now; raises nothing that is to be expected."""
        try:
            self._maps.refresh()
            told = ""
        except NoBoard:
            return
        except FmctlError as error:
            told = str(error)
        if told and told != self._told:
            log.warning("the GPU map is not up to date: %s", told)
        self._told = told
