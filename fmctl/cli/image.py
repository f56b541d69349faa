# SPDX-License-Identifier: Apache-2.0
"""`fmctl image`: signs, checks, installs, lists and removes images of the Service VM. No daemon is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fmctl.cli import config, failure, options, render
from fmctl.cli.options import Connection
from fmctl.cli.partitions import dialled
from fmctl.cli.table import table
from fmctl.core.errors import FmctlError, ImageRefused
from fmctl.core.settings import DaemonSettings

if TYPE_CHECKING:
    from fmctl.core.image import Image
    from fmctl.core.ports import ImageStore

_STATUS_TIMEOUT = 2.0
"""Seconds that the daemon has to say which image runs."""
_KINDS = ("ed25519", "ecdsa-p256")
_HEADERS = ("NAME", "DRIVER", "FM", "AGENT", "KERNEL", "SIMULATED", "SIZE", "USE")
_PATH = click.Path(path_type=Path)

_keys = click.option(
    "--key", "keys", type=_PATH, multiple=True, metavar="PUBLIC", help="Trust this key instead of the pinned ones."
)


@click.group()
def image() -> None:
    """Sign, check, install and remove Service VM images."""


@image.command()
@click.option("--output", required=True, type=_PATH, metavar="FILE", help="The private key.")
@click.option("--type", "kind", type=click.Choice(_KINDS), default=_KINDS[0], show_default=True, help="Its kind.")
def keygen(output: Path, kind: str) -> None:
    """Make a key that signs images.

    The private key is readable by its owner alone, and without a passphrase; its public half is written beside it, to
    FILE.pub. Neither is ever overwritten.
    """
    from fmctl import local
    from fmctl.core import signature

    pair = signature.generate(signature.KeyKind(kind))
    public = local.write_keys(output, pair)
    click.echo(f"{output} signs images; keep it off the hosts that boot them")
    click.echo(f"{public} is what hosts pin: {signature.fingerprint(pair.public)}")


@image.command()
@click.argument("folder", type=_PATH, metavar="DIR")
@click.option("--key", required=True, type=_PATH, metavar="FILE", help="The private key.")
def sign(folder: Path, key: Path) -> None:
    """Sign an image's manifest.

    Its files are compared with the manifest before. The signature goes to DIR/manifest.json.sig.
    """
    from fmctl import local

    path, fingerprint = local.sign_image(folder, key)
    click.echo(f"{path} was made by the key {fingerprint}")


@image.command()
@click.argument("image_or_folder", metavar="DIR|NAME")
@_keys
@config.config_file
def verify(image_or_folder: str, keys: tuple[Path, ...], config_file: Path | None) -> None:
    """Check an image as a start of the Service VM does.

    What has a slash is a folder, where it does not matter who owns the files; else it is an image in the store. Exit
    status 1 tells that it is refused.
    """
    from fmctl import local

    settings = config.read(DaemonSettings, config_file)
    if "/" in image_or_folder:
        found = local.image_folder(Path(image_or_folder), settings, keys)
    else:
        found = local.image_store(settings, keys).vouched(image_or_folder)
    click.echo(_checked(found, in_store="/" not in image_or_folder), nl=False)
    _tell_extra(found)


@image.command()
@click.argument("folder", type=_PATH, metavar="DIR")
@click.option("--name", default="", help="Its name in the store.  [default: the folder's]")
@config.config_file
def add(folder: Path, name: str, config_file: Path | None) -> None:
    """Check an image and copy it into the store.

    The pinned keys must vouch for it. It is not used before `fmctl service-vm upgrade` says so.
    """
    from fmctl import local

    store = local.image_store(config.read(DaemonSettings, config_file))
    added = store.add(folder, name or folder.resolve().name)
    verb = "is already in" if added.already else "is now in"
    click.echo(f"the image {added.image.name} {verb} the store: {added.image.folder}")


@image.command("list")
@options.output("table", "json", "yaml", "name")
@click.option("--no-headers", is_flag=True, help="Leave out the table's headers.")
@config.config_file
@click.pass_context
def list_command(context: click.Context, style: str, config_file: Path | None, *, no_headers: bool) -> None:
    """List the images in the store.

    They are not checked; `verify` does that. One whose manifest cannot be read is told on standard error, and exit
    status 1 tells of it.
    """
    store = _store(config_file)
    found, refusals = _read_all(store)
    if style == "name":
        click.echo("".join(f"{name}\n" for name in store.names()), nl=False)
    elif style == "table":
        rows = [_cells(each, _use(store, each.name)) for each in found]
        click.echo(table(_HEADERS, rows, show_headers=not no_headers) if rows or not no_headers else "", nl=False)
    else:
        plain = [_plain(each, _use(store, each.name)) for each in found]
        click.echo(render.document({"images": plain}, style), nl=False)
    for refusal in refusals:
        click.echo(failure.text(refusal), err=True)
    if refusals:
        context.exit(failure.FAILURE)


@image.command()
@click.argument("name")
@options.output("yaml", "json")
@config.config_file
def show(name: str, style: str, config_file: Path | None) -> None:
    """Show what an image's manifest says of it.

    Nothing is checked; `verify` does that.
    """
    store = _store(config_file)
    found = store.read(name)
    manifest = found.manifest
    plain = {
        **_plain(found, _use(store, name)),
        "kernel_arguments": manifest.kernel_arguments,
        "files": dict(manifest.files),
        "extra_files": list(found.extra),
        "packages": dict(manifest.packages),
        "extra": list(manifest.extra),
    }
    click.echo(render.document(plain, style), nl=False)


@image.command()
@click.option("--keep", type=click.IntRange(0), default=2, show_default=True, help="How many of the newest stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@config.config_file
@options.connection
def prune(connection: Connection, keep: int, config_file: Path | None, *, dry_run: bool) -> None:
    """Remove old images from the store.

    The newest stay, and whatever is in use, tried, or running: a daemon that answers tells which one that is.
    """
    from fmctl.core.image import superfluous

    store = _store(config_file)
    newest_first = sorted(store.names(), key=lambda name: (-store.added(name), name))
    names = superfluous(newest_first, keep=keep, used=_used(store, _running(connection)))
    for name in names:
        if not dry_run:
            store.remove(name)
        click.echo(f"the image {name} {'would go' if dry_run else 'is gone'}")
    if not names:
        click.echo("nothing to remove")


def _store(config_file: Path | None) -> ImageStore:
    from fmctl import local

    return local.image_store(config.read(DaemonSettings, config_file))


def _running(connection: Connection) -> str | None:
    """The image that the Service VM was started from, where the daemon answers."""
    try:
        with dialled(connection) as (client, _):
            return client.status(timeout=_STATUS_TIMEOUT).service_vm.image or None
    except FmctlError:
        return None


def _used(store: ImageStore, running: str | None = None) -> frozenset[str | None]:
    """The images that must stay; `running` is the one that the Service VM was started from."""
    return frozenset({store.current(), store.trial(), running})


def _use(store: ImageStore, name: str) -> str:
    uses = [use for use, used in (("current", store.current()), ("trial", store.trial())) if used == name]
    return ",".join(uses)


def _read_all(store: ImageStore) -> tuple[list[Image], list[ImageRefused]]:
    found, refusals = [], []
    for name in store.names():
        try:
            found.append(store.read(name))
        except ImageRefused as refusal:
            refusals.append(refusal)
    return found, refusals


def _cells(found: Image, use: str) -> tuple[str, ...]:
    manifest = found.manifest
    return (
        found.name,
        manifest.driver or "-",
        manifest.fabric_manager or "-",
        manifest.agent,
        manifest.versions["kernel"],
        "yes" if manifest.simulated else "no",
        f"{found.size / (1 << 20):.1f} MiB",
        use or "-",
    )


def _plain(found: Image, use: str) -> dict[str, Any]:
    return {
        "name": found.name,
        "folder": str(found.folder),
        "digest": found.digest,
        "size": found.size,
        "current": "current" in use,
        "trial": "trial" in use,
        "simulated": found.manifest.simulated,
        "versions": dict(found.manifest.versions),
    }


def _checked(found: Image, *, in_store: bool) -> str:
    signer = f"made by the key {found.signed_by}" if found.signed_by else "not asked for, and by no pinned key"
    hashes = [f"  {file}: its SHA-256 is {sha}\n" for file, sha in sorted(found.manifest.files.items())]
    rights = "  owners: nobody but root and the users of fmctl and QEMU can write the files\n" if in_store else ""
    return (
        f"the image {found.name} is what its manifest says\n"
        f"  manifest.json: its SHA-256 is {found.digest}\n"
        f"  manifest.json.sig: {signer}\n" + "".join(hashes) + rights
    )


def _tell_extra(found: Image) -> None:
    if found.extra:
        click.echo(f"fmctl: nobody vouches for {', '.join(found.extra)}, and nothing uses it", err=True)
