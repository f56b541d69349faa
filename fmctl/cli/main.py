# SPDX-License-Identifier: Apache-2.0
"""The command `fmctl`: its commands, loaded when used, and the one place where a failure becomes an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace

import click

from fmctl import __version__
from fmctl.cli import failure, options
from fmctl.core.address import Address
from fmctl.core.errors import FmctlError

_COMMANDS = {
    "list": "fmctl.cli.partitions:list_command",
    "activate": "fmctl.cli.partitions:activate",
    "deactivate": "fmctl.cli.partitions:deactivate",
    "allocate": "fmctl.cli.lease:allocate",
    "release": "fmctl.cli.lease:release",
    "lease": "fmctl.cli.lease:lease",
    "capacity": "fmctl.cli.capacity:capacity",
    "can-allocate": "fmctl.cli.capacity:can_allocate",
    "explain": "fmctl.cli.capacity:explain",
    "layout": "fmctl.cli.layout:layout",
    "watch": "fmctl.cli.watch:watch",
    "reconcile": "fmctl.cli.reconcile:reconcile",
    "status": "fmctl.cli.status:status",
    "doctor": "fmctl.cli.doctor:doctor",
    "wait": "fmctl.cli.status:wait",
    "daemon": "fmctl.cli.daemon:daemon",
    "agent": "fmctl.cli.agent:agent",
    "config": "fmctl.cli.config:config",
    "adopt": "fmctl.cli.reconcile:adopt",
    "store": "fmctl.cli.store:store",
    "inventory": "fmctl.cli.inventory:inventory",
    "gpumap": "fmctl.cli.gpumap:gpumap",
    "host": "fmctl.cli.host:host",
    "gpu": "fmctl.cli.marks:gpu",
    "partition": "fmctl.cli.marks:partition",
    "platform": "fmctl.cli.platform:platform",
    "vfio": "fmctl.cli.vfio:vfio",
    "service-vm": "fmctl.cli.servicevm:service_vm",
    "image": "fmctl.cli.image:image",
    "hook": "fmctl.cli.hook:hook",
    "tenant-vm": "fmctl.cli.tenantvm:tenant_vm",
    "sim": "fmctl.cli.sim:sim",
}
_AGENT_COMMANDS = ("list", "activate", "deactivate", "status")
"""What the agent can be asked past the daemon."""


class _Lazy(click.Group):
    """A group whose commands are imported when they are asked for, so that none pays for another's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fmctl", message="%(prog)s %(version)s")
@click.option(
    "--agent",
    type=options.ADDRESS,
    metavar="ADDRESS",
    help="Ask the agent itself, where there is no daemon: unix:PATH, HOST:PORT or vsock:CID:PORT.",
)
@options.outer_connection
@click.pass_context
def cli(ctx: click.Context, connection: options.Connection, agent: Address | None) -> None:
    """Lease GPUs of an HGX board, in NVLink partitions, to tenants that share it.

    Exit status: 0 done, or already so for the same owner; 1 failure; 2 usage; 3 not found; 4 conflict or in use;
    5 unreachable, or outcome unknown; 6 drift; 7 no capacity; 8 unverified GPU map.
    """
    if agent and ctx.invoked_subcommand not in _AGENT_COMMANDS:
        raise click.UsageError(f"--agent goes with {', '.join(_AGENT_COMMANDS)}.")
    ctx.obj = replace(connection, agent=agent)


def main() -> None:
    """Run the command line and exit, without the interpreter's own teardown: a sixth of a command's time."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    code = _run()
    sys.stderr.flush()
    os._exit(code)


def _run() -> int:
    try:
        code = cli.main(prog_name="fmctl", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except FmctlError as error:
        click.echo(failure.text(error), err=True)
        return failure.exit_code(error)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return failure.INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            click.echo(failure.text(FmctlError("fmctl cannot go on", why=str(error))), err=True)
        return failure.FAILURE
    except Exception as error:
        if os.environ.get("FMCTL_DEBUG"):
            raise
        click.echo(failure.text(failure.defect(error)), err=True)
        return failure.FAILURE
