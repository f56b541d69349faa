# SPDX-License-Identifier: Apache-2.0
"""The agent's settings, a YAML file, described as `core.settings` describes the daemon's."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath
from typing import ClassVar

from fmctl.core.address import Address
from fmctl.core.schema import setting
from fmctl.core.values import AbsolutePath, LogLevel


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """The agent in the Service VM."""

    FILE: ClassVar[str] = "/etc/fmctl/agent.yaml"

    listen: Address = setting(Address.parse("unix:/run/fmctl/agent.sock"), doc="where the agent serves: unix:PATH")
    socket_group: str = setting("", doc="group that may call, by name; empty for the group the agent runs as")
    vsock_port: int = setting(0, doc="the vsock port where the agent serves too; 0 for none", low=0, high=2**31)
    allowed_peers: tuple[int, ...] = setting(
        (2,), doc="context ids that may call over vsock, from a port below 1024; 2 is the host"
    )
    fm_command: tuple[str, ...] = setting(
        (),
        doc="Fabric Manager's program with fixed arguments, which the agent runs on the daemon's word, with -c for"
        " fm_config, -g on NVLink 5, and --restart to take up its state; empty where something else starts it",
    )
    fm_config: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/run/fmctl/fabricmanager.cfg")),
        doc="the fabricmanager.cfg that the agent writes before each start of Fabric Manager",
    )
    fm_stock_config: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/usr/share/nvidia/nvswitch/fabricmanager.cfg")),
        doc="NVIDIA's own, whose other keys are kept, if it exists",
    )
    fm_log: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/var/log/fabricmanager.log")), doc="the log that Fabric Manager writes"
    )
    fm_log_max_mib: int = setting(
        16, doc="its size in MiB at which Fabric Manager begins another; three are kept", low=1, high=1024
    )
    nvlsm_command: tuple[str, ...] = setting(
        ("/opt/nvidia/nvlsm/sbin/nvlsm", "-F", "/usr/share/nvidia/nvlsm/nvlsm.conf"),
        doc="the NVLink subnet manager's command line, in the foreground, which NVLink 5 hardware needs beside Fabric"
        " Manager; -g is added",
    )
    run_dir: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/run/fmctl")),
        doc="where the agent notes the processes that it started, and Fabric Manager keeps its state",
    )
    agent_dir: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/run/fmctl/agent")), doc="where the agents lie that the Service VM may run"
    )
    system_root: AbsolutePath = setting(
        AbsolutePath(PurePosixPath("/")),
        doc="the folder with sys and dev in which the agent looks for hardware and for the kernel's log",
    )
    fm_address: Address = setting(
        Address.parse("127.0.0.1:6666"),
        doc="Fabric Manager's API: HOST:PORT, unix:PATH or vsock:CID:PORT, as fabricmanager.cfg's FM_CMD_* keys say",
    )
    library: str = setting("", doc="path of libnvfm.so.1; empty to leave it to the system's loader")
    connect_timeout_s: float = setting(1.0, doc="seconds to wait for a connection to Fabric Manager", low=0.05, high=60)
    call_timeout_s: float = setting(
        30.0, doc="seconds after which a call to Fabric Manager is given up, and its process killed", low=0.1, high=600
    )
    reflection: bool = setting(default=False, doc="serve gRPC reflection (needs the extra `reflection`)")
    log_level: LogLevel = setting(LogLevel.INFO, doc="debug, info, warning or error")
