# SPDX-License-Identifier: Apache-2.0
"""Lines of the Service VM's logs to messages of the daemon's API and back."""

from __future__ import annotations

from fmctl.core.loglines import KeptLog, LogLine, LogSource
from fmctl.rpc.fmctl.v1 import fabric_manager_pb2, service_vm_pb2

SOURCES = {
    LogSource.FABRIC_MANAGER: fabric_manager_pb2.LOG_SOURCE_FABRIC_MANAGER,
    LogSource.KERNEL: fabric_manager_pb2.LOG_SOURCE_KERNEL,
    LogSource.BREAK_GLASS: fabric_manager_pb2.LOG_SOURCE_BREAK_GLASS,
}
_SOURCES_BACK = {message: source for source, message in SOURCES.items()}


def kept_to(kept: KeptLog, *, simulated: bool) -> service_vm_pb2.ListServiceVmLogResponse:
    """The message of what the daemon keeps."""
    answer = service_vm_pb2.ListServiceVmLogResponse(dropped=kept.dropped, simulated=simulated)
    for line in kept.lines:
        message = answer.lines.add(source=SOURCES[line.source], text=line.text)
        message.time.FromNanoseconds(int(line.time * 1e9))
    return answer


def kept_from(message: service_vm_pb2.ListServiceVmLogResponse) -> KeptLog:
    """What the daemon keeps, of its message; a source that is not known is Fabric Manager's."""
    lines = (
        LogLine(_SOURCES_BACK.get(line.source, LogSource.FABRIC_MANAGER), line.time.ToNanoseconds() / 1e9, line.text)
        for line in message.lines
    )
    return KeptLog(tuple(lines), message.dropped)
