# SPDX-License-Identifier: Apache-2.0
"""`fmctl tenant-vm`: documents of tenant VMs, and what a host lacks for them."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from fmctl import files
from fmctl.cli import config, failure, options, params, render
from fmctl.cli import place as at
from fmctl.cli.lease import dialled
from fmctl.cli.options import Connection
from fmctl.cli.place import Place
from fmctl.core import cdi, gpumap, grant, tenantcheck, tenantvm
from fmctl.core.errors import AgentUnreachable
from fmctl.core.gpumap import GpuMap
from fmctl.core.grant import Grant
from fmctl.core.settings import DaemonSettings, HugePages, TenantVmSettings
from fmctl.core.tenantvm import Host, QemuVersion, Request
from fmctl.core.values import AbsolutePath, DomainName, Uuid

F = TypeVar("F", bound=Callable[..., Any])


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """A text that a function reads, which raises ValueError."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the text; fails as a usage error."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _version(text: str) -> QemuVersion:
    found = tenantcheck.qemu_version(text)
    if found is None:
        raise ValueError(f"a version such as 10.1 is wanted, not {text!r}")
    return found


def _network(text: str) -> str:
    return TenantVmSettings(network=text).network


def _range(name: str) -> click.IntRange:
    """The bounds that a setting has."""
    (bounds,) = (field.metadata for field in dataclasses.fields(TenantVmSettings) if field.name == name)
    return click.IntRange(bounds["low"], bounds["high"])


@dataclass(frozen=True)
class _Wanted:
    """The options that both commands have, by their names."""

    vcpus: int | None
    memory_gib: int | None
    huge_pages: str | None
    network: str | None
    gpu_map: Path | None
    qemu_version: QemuVersion | None
    config_file: Path | None
    place: Place

    def settings(self) -> DaemonSettings:
        """The settings with what the options say in their place; raises InvalidDocument."""
        settings = config.read(DaemonSettings, self.config_file)
        given = {"vcpus": self.vcpus, "memory_gib": self.memory_gib, "network": self.network}
        if self.huge_pages:
            given["huge_pages"] = HugePages(self.huge_pages)
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(settings, tenant_vm=dataclasses.replace(settings.tenant_vm, **changes))

    def host(self, settings: DaemonSettings, gpu_map: GpuMap | None) -> Host:
        """The host that they are about; raises FmctlError."""
        found = self.place.host(settings).for_tenant(settings, gpu_map)
        return dataclasses.replace(found, qemu=self.qemu_version or found.qemu)

    def map_file(self, settings: DaemonSettings) -> Path | None:
        """The file of the option or of the settings that says which GPU is which."""
        return self.gpu_map or (Path(settings.gpu_map.path) if settings.gpu_map else None)

    def any_map(self, settings: DaemonSettings, *, needed: bool) -> GpuMap | None:
        """The map of the file; None without one, where a pretended host has its own or none is `needed`.

        Raises MapUnverified.
        """
        file = self.map_file(settings)
        if file is None and needed and not self.place.simulate:
            raise gpumap.not_set()
        return gpumap.parse(files.read(file), str(file)) if file else None

    def counting_map(self, settings: DaemonSettings, connection: Connection) -> GpuMap | None:
        """The map that the daemon has verified, or without a daemon a file's, of which standard error says so.

        Raises MapUnverified where the daemon's is not verified, or a file's differs from it.
        """
        if self.place.simulate:
            return self.any_map(settings, needed=True)
        try:
            verified = _verified(connection)
        except AgentUnreachable as error:
            written = self.any_map(settings, needed=True)
            click.echo(f"fmctl: the GPU map {self.map_file(settings)} is not verified: {error}", err=True)
            return written
        written = self.any_map(settings, needed=False)
        if written is not None:
            verified.refuse_other(written, str(self.map_file(settings)))
        return verified


def _verified(connection: Connection) -> GpuMap:
    from fmctl.cli.gpumap import dialled as dialled_map

    with dialled_map(connection) as (client, timeout):
        return client.show(timeout=timeout).counting()


def _wanted(command: F) -> F:
    """Add the options that both commands have."""

    @click.option("--vcpus", type=_range("vcpus"), metavar="N", help="Processors.")
    @click.option("--memory-gib", type=_range("memory_gib"), metavar="N", help="Memory in GiB.")
    @click.option("--huge-pages", type=click.Choice([p.value for p in HugePages]), help="Pages of the memory.")
    @click.option("--network", type=_Parsed("name", _network), help="The libvirt network of its network card.")
    @click.option("--gpu-map", type=click.Path(path_type=Path), metavar="FILE", help="GPUs' addresses by physical id.")
    @click.option("--qemu-version", type=_Parsed("x.y", _version), help="QEMU's version.  [default: QEMU is asked]")
    @config.config_file
    @at.place
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wanted = _Wanted(**{field.name: kwargs.pop(field.name) for field in dataclasses.fields(_Wanted)})
        return command(*args, wanted=wanted, **kwargs)

    return wrapped  # type: ignore[return-value]


@click.group("tenant-vm")
def tenant_vm() -> None:
    """Make libvirt documents of tenant VMs."""


@tenant_vm.command("render")
@click.option("--gpu-ids", type=options.GPU_IDS, metavar="IDS", help="Its GPUs, by physical id: 1,3.")
@click.option("--lease", "lease_id", type=params.LEASE_ID, metavar="LEASE", help="Its GPUs are those of this lease.")
@click.option("--devices-only", is_flag=True, help="Print only the hostdev elements.")
@options.output("xml", "cdi", "kata")
@click.option("--name", type=_Parsed("name", DomainName.parse), help="Its name.  [default: tenant- and GPUs or lease]")
@click.option("--uuid", type=_Parsed("uuid", Uuid.parse), help="Its UUID.  [default: the lease's, or made of its name]")
@click.option(
    "--disk",
    "disks",
    type=_Parsed("path", AbsolutePath.parse),
    multiple=True,
    help="A disk, raw or *.qcow2; may be repeated.",
)
@_wanted
@options.connection
def render_command(
    connection: Connection,
    wanted: _Wanted,
    gpu_ids: tuple[int, ...] | None,
    lease_id: str | None,
    style: str,
    *,
    devices_only: bool,
    **named: Any,
) -> None:
    """Print a libvirt document of a tenant VM with these GPUs.

    They are those of an active lease, or else must be those of one partition. The daemon's verified GPU map says which
    is which; a file's counts only where no daemon answers, with a warning. -o cdi and -o kata tell a lease's GPUs to
    container runtimes. What is not given is taken from tenant_vm in the settings. Nothing is started or defined, and no
    partition activated.
    """
    _refuse_combination(gpu_ids, lease_id, style, devices_only=devices_only)
    given = None if lease_id is None else _granted(connection, lease_id)
    if style != "xml" and given is not None:
        click.echo(_for_containers(given, style), nl=False)
        return
    request = Request(gpu_ids or (), **named)
    xml, uuid = _document(wanted, request, given, connection, devices_only=devices_only)
    click.echo(xml, nl=False)
    if given is not None and not given.vm_uuid:
        click.echo(_how_to_bind(given, uuid), err=True)


def _document(
    wanted: _Wanted, request: Request, given: Grant | None, connection: Connection, *, devices_only: bool
) -> tuple[str, Uuid | None]:
    """The XML, and the UUID of the VM that it is for, as far as that is known; raises FmctlError."""
    from fmctl import local

    settings = wanted.settings()
    if devices_only and given is not None:
        return local.tenant_devices(settings, given.addresses.values()).xml, request.uuid
    host = wanted.host(settings, wanted.counting_map(settings, connection) if given is None else None)
    if given is not None:
        vm = tenantvm.for_lease(settings.tenant_vm, request, given, host)
    else:
        vm = tenantvm.tenant_vm(settings.tenant_vm, request, host)
    if devices_only:
        return local.tenant_devices(settings, [port.device for port in vm.ports]).xml, request.uuid
    return local.tenant_vm(settings, vm).xml, Uuid(vm.uuid)


def _refuse_combination(
    gpu_ids: tuple[int, ...] | None, lease_id: str | None, style: str, *, devices_only: bool
) -> None:
    if (gpu_ids is None) == (lease_id is None):
        raise click.UsageError("Give one of --gpu-ids and --lease.")
    if style != "xml" and (lease_id is None or devices_only):
        raise click.UsageError(f"-o {style} goes with --lease, and not with --devices-only.")


def _granted(connection: Connection, lease_id: str) -> Grant:
    """What the lease gives; raises FmctlError."""
    with dialled(connection) as (client, timeout):
        return grant.of(client.lease(lease_id, timeout=timeout))


def _for_containers(given: Grant, style: str) -> str:
    if style == "cdi":
        return render.document(cdi.specification(given), "json")
    return render.document(cdi.kata_annotations(given), "yaml")


def _how_to_bind(given: Grant, uuid: Uuid | None) -> str:
    """What lets the daemon know the VM of a lease that is for any."""
    command = ["fmctl", "lease", "update", given.lease_id, "--owner", given.owner, "--vm", str(uuid or "UUID")]
    return f"fmctl: the lease names no VM; to bind it to this one: {shlex.join(command)}"


@tenant_vm.command()
@click.option("--gpu-ids", type=options.GPU_IDS, metavar="IDS", help="Its GPUs.  [default: all of the board]")
@options.output("text", "json", "yaml")
@_wanted
@click.pass_context
def check(context: click.Context, wanted: _Wanted, gpu_ids: tuple[int, ...] | None, style: str) -> None:
    """Tell what this host lacks for a tenant VM.

    It is about huge pages, QEMU's version, and addresses for the GPUs' memory regions. Exit status 1 tells that
    something was found.
    """
    settings = wanted.settings()
    host = wanted.host(settings, wanted.any_map(settings, needed=gpu_ids is not None))
    request = Request(gpu_ids or host.inventory.platform.physical_ids)
    findings = tenantcheck.judge(tenantvm.tenant_vm(settings.tenant_vm, request, host), host.capacity, host.qemu)
    click.echo(render.findings(findings, style, nothing="the host can run this tenant VM"), nl=False)
    if findings:
        context.exit(failure.FAILURE)
