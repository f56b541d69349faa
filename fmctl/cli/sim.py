# SPDX-License-Identifier: Apache-2.0
"""`fmctl sim`: a simulated Fabric Manager, and the library that reaches it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fmctl import platforms
from fmctl.cli import options
from fmctl.core.address import Address


@click.group()
def sim() -> None:
    """Simulate Fabric Manager and its library.

    For whatever is linked against libnvfm.
    """


@sim.command()
@click.option("--platform", "board", required=True, metavar="NAME|FILE", help="The board.")
@click.option(
    "--listen", type=options.ADDRESS, required=True, metavar="ADDRESS", help="Where to serve: HOST:PORT or unix:PATH."
)
@click.option("--restart", is_flag=True, help="Take up the state file, and wait for the list of active partitions.")
@click.option(
    "--state-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the state for a restart is kept.",
)
@click.option(
    "--latency-ms",
    type=click.FloatRange(0, 600_000),
    default=0.0,
    metavar="NUMBER",
    help="How long each call takes before it has an effect.",
)
@click.option("--missing-gpu", type=click.IntRange(1), multiple=True, metavar="ID", help="A GPU that is not there.")
@click.option("--fault", multiple=True, metavar="SPEC", help="What goes wrong, and at which call.")
def fm(
    board: str,
    listen: Address,
    state_file: Path | None,
    latency_ms: float,
    missing_gpu: tuple[int, ...],
    fault: tuple[str, ...],
    *,
    restart: bool,
) -> None:
    """Run a simulated Fabric Manager until SIGINT or SIGTERM.

    \b
    SPEC is WHAT@[OPERATION:]CALL, or slow-start=SECONDS:
      hang, close            never answer, or close the connection
      code=-10               answer with that code
      die-before, die-after  end as by kill -9, before or after the change
      lie=partitions:200     count wrong in the answer; also gpus, switches, ports
    CALL counts from 1; 3+ is the third call and every later one. OPERATION is
    list, activate, deactivate, set-activated, failed-devices, unsupported or
    activate-with-vfs.
    """
    from fmctl.sim import fmserver
    from fmctl.sim.faults import Faults

    fmserver.run(
        fmserver.Options(
            platform=platforms.resolve(board),
            listen=listen,
            restart=restart,
            state_file=state_file,
            latency=latency_ms / 1000,
            missing_gpus=missing_gpu,
            faults=Faults.parse(fault),
        )
    )


_power = click.option(
    "--power", type=click.Path(path_type=Path), metavar="FIFO", help="End when nobody holds this named pipe open."
)


@sim.command(name="nv-fabricmanager", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--platform", "board", required=True, metavar="NAME|FILE", help="The board.")
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=Path("/usr/share/nvidia/nvswitch/fabricmanager.cfg"),
    show_default=True,
    metavar="FILE",
    help="Its configuration.",
)
@click.option("-r", "--restart", is_flag=True, help="Take up the state file, and wait for the active partitions.")
@click.option("-g", "--fm-sm-mgmt-port-guid", "guid", default="", metavar="GUID", help="The port, for NVLink 5.")
@click.option("-v", "--version", is_flag=True, help="Print the version, which FMCTL_SIM_FM_VERSION can set.")
@click.option("--no-port", is_flag=True, help="Let a board with NVLink 5 do without -g.")
@click.option("--latency-ms", type=click.FloatRange(0, 600_000), default=0.0, metavar="NUMBER", help="As of `sim fm`.")
@click.option("--fault", multiple=True, envvar="FMCTL_SIM_FM_FAULTS", metavar="SPEC", help="As of `sim fm`.")
@_power
def nv_fabricmanager(
    board: str,
    config_file: Path,
    guid: str,
    latency_ms: float,
    fault: tuple[str, ...],
    power: Path | None,
    *,
    restart: bool,
    version: bool,
    no_port: bool,
) -> None:
    """Run it behind the real program's command line.

    It reads FABRIC_MODE, FABRIC_MODE_RESTART, DAEMONIZE, STATE_FILE_NAME,
    FM_CMD_* and LOG_* from its configuration, and writes a log in Fabric
    Manager's format.
    """
    from fmctl import process
    from fmctl.sim import nvfabricmanager
    from fmctl.sim.faults import Faults

    if version:
        click.echo(nvfabricmanager.version())
        return
    _draw(power)
    start = nvfabricmanager.Start(
        platforms.resolve(board),
        config_file,
        restart=restart,
        guid=guid,
        needs_port=not no_port,
        latency=latency_ms / 1000,
        faults=Faults.parse(fault),
    )
    nvfabricmanager.run(start, process.python("fmctl", *sys.argv[1:]))


@sim.command()
@click.option("-F", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Its configuration; not read.")
@click.option("-g", "guid", required=True, metavar="GUID", help="The port.")
@_power
def nvlsm(guid: str, config_file: Path | None, power: Path | None) -> None:
    """Run a stand-in for NVLSM, which does nothing.

    Until SIGINT or SIGTERM.
    """
    from fmctl.process import Termination

    with Termination() as termination:
        _draw(power)
        termination.wait()


def _draw(power: Path | None) -> None:
    if power is not None:
        from fmctl.sim.power import draw

        draw(power)


@sim.command()
def lib() -> None:
    """Print the folder of the simulator's libnvfm.

    It is for LD_LIBRARY_PATH, and built if needed.
    """
    from fmctl.sim import shim

    click.echo(shim.build())
