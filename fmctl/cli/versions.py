# SPDX-License-Identifier: Apache-2.0
"""`fmctl service-vm check`: whether an image, the board and a tenant VM's driver go together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fmctl import platforms, versions
from fmctl.cli import config, failure, options, render
from fmctl.cli import place as at
from fmctl.cli.place import Place
from fmctl.core.errors import BadRequest
from fmctl.core.finding import Finding
from fmctl.core.settings import DaemonSettings
from fmctl.core.versions import Compared, Versions, compare

if TYPE_CHECKING:
    from fmctl.core.image import Image
    from fmctl.core.platform import Platform


image_option = click.option("--image", default="", metavar="NAME|DIR", help="The image.  [default: the one in use]")


@click.command()
@click.option("--guest-driver", default="", metavar="VERSION", help="The driver in the tenant VM, such as 580.95.05.")
@image_option
@options.output("text", "json", "yaml")
@at.place
@config.config_file
@click.pass_context
def check(
    context: click.Context, place: Place, guest_driver: str, image: str, style: str, config_file: Path | None
) -> None:
    """Compare the image with the board and with a guest's driver.

    Their versions must go together. It tells what was compared, and on whose word. Exit status 1 tells that something
    does not fit.
    """
    settings = config.read(DaemonSettings, config_file)
    found = image_of(image, settings)
    if found.manifest.simulated:
        compared: tuple[Compared, ...] = (_simulated(found),)
    else:
        manifest = found.manifest
        wanted = Versions(manifest.driver, manifest.fabric_manager, guest_driver, manifest.nvlsm)
        compared = compare(versions.matrix(), _board(place, settings), wanted)
    click.echo(_shown(found.name, compared, style), nl=False)
    if any(each.finding for each in compared):
        context.exit(failure.FAILURE)


def image_of(name: str, settings: DaemonSettings) -> Image:
    """The image of that name or folder, or the one in use; raises FmctlError."""
    from fmctl import local

    if "/" in name:
        return local.read_image(Path(name))
    store = local.image_store(settings)
    chosen = name or store.current()
    if chosen is None:
        raise BadRequest("no image is in use", why="none was chosen in the store yet", fix="name one with --image")
    return store.read(chosen)


def _board(place: Place, settings: DaemonSettings) -> Platform:
    """The board that an option or a setting names, or that this host has; raises NoBoard."""
    named = place.simulate or place.platform or settings.platform
    return platforms.resolve(named) if named else place.host(settings).inventory().platform


def _simulated(found: Image) -> Compared:
    what = f"the image {found.name} has a pretended Fabric Manager, so its versions are unknown"
    why = "what a pretended Fabric Manager says of itself tells nothing of NVIDIA's driver"
    fix = "build an image with service-vm/build --driver, and name it with --image"
    return Compared(what, why, Finding("image-simulated", what, why, fix))


def _shown(name: str, compared: tuple[Compared, ...], style: str) -> str:
    findings = [each.finding for each in compared if each.finding]
    if style == "text":
        fitting = [f"fits: {each.what}\n  why: {each.why}\n" for each in compared if not each.finding]
        wrong = render.findings(findings, style, nothing="the versions go together")
        return "".join(fitting) + wrong
    lines = [{"what": each.what, "why": each.why, "fits": each.finding is None} for each in compared]
    return render.document({"image": name, "compared": lines, "findings": [vars(each) for each in findings]}, style)
