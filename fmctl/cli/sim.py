# SPDX-License-Identifier: Apache-2.0
"""`fmctl sim`: a simulated Fabric Manager, and the library that reaches it."""

from __future__ import annotations

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


@sim.command()
def lib() -> None:
    """Print the folder of the simulator's libnvfm.

    It is for LD_LIBRARY_PATH, and built if needed.
    """
    from fmctl.sim import shim

    click.echo(shim.build())
