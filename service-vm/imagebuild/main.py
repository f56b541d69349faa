# SPDX-License-Identifier: Apache-2.0
"""The command lines of service-vm/build and service-vm/update-lock."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fmctl.core.errors import BadRequest, FmctlError
from imagebuild import RECIPE, image, lock, update
from imagebuild.cache import StaleLock

FAILURE, USAGE, STALE, INTERRUPTED = 1, 2, 3, 130
LOCK = RECIPE / "lock"
TOOLS = ("mmdebstrap", "sqfstar", "unsquashfs", "dpkg-deb", "apt-get")


def build(argv: Sequence[str]) -> int:
    """Run service-vm/build; its exit status."""
    options = _build_options(argv)
    return _run("build", lambda: _build(options))


def update_lock(argv: Sequence[str]) -> int:
    """Run service-vm/update-lock; its exit status."""
    parser = argparse.ArgumentParser(
        prog="service-vm/update-lock",
        description="Pin what an image is made of to what Debian and the Python index have today.",
    )
    parser.add_argument("--lock", type=Path, default=LOCK, metavar="FOLDER", help="the lock to write [service-vm/lock]")
    options = parser.parse_args(argv)
    return _run("update-lock", lambda: update.run(options.lock))


def _build_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="service-vm/build",
        description="Build the image that the Service VM boots: kernel, initrd, root, agent and manifest.json.",
        epilog="Exit status: 0 done; 1 failure; 2 usage; 3 the lock names what can no longer be had.",
        allow_abbrev=False,
    )
    inside = parser.add_mutually_exclusive_group(required=True)
    inside.add_argument("--simulated-fm", action="store_true", help="with a simulated Fabric Manager")
    inside.add_argument("--driver", metavar="BRANCH", help="with NVIDIA's driver and Fabric Manager of a branch: 580")
    inside.add_argument("--agent-only", action="store_true", help="another image with only the agent made anew")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the image: a new or empty folder")
    parser.add_argument("--platform", metavar="NAME|FILE", help="the simulated board [hgx-h100-8]")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="NVIDIA's .deb files, for --driver")
    parser.add_argument("--from", dest="image", type=Path, metavar="DIR", help="the other image, for --agent-only")
    parser.add_argument(
        "--extra", type=Path, action="append", metavar="FOLDER", help="a folder to copy over the root; may be repeated"
    )
    parser.add_argument("--lock", type=Path, default=LOCK, metavar="FOLDER", help="another lock than service-vm/lock")
    parser.add_argument(
        "--mode",
        choices=("root", "unshare"),
        default="root" if os.geteuid() == 0 else "unshare",
        help="how mmdebstrap works: as root, or in a user namespace [by who runs it]",
    )
    options = parser.parse_args(argv)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    goes_with = {
        "--platform": (options.platform, options.simulated_fm, "--simulated-fm"),
        "--packages": (options.packages, options.driver, "--driver"),
        "--from": (options.image, options.agent_only, "--agent-only"),
    }
    for name, (given, wanted, other) in goes_with.items():
        if given and not wanted:
            parser.error(f"{name} goes with {other}")
    if options.driver and not options.packages:
        parser.error("--driver needs --packages, the folder of NVIDIA's .deb files; they are never downloaded")
    if options.agent_only and not options.image:
        parser.error("--agent-only needs --from, the image whose other files are kept")
    if options.agent_only and options.extra:
        parser.error("--extra changes the root, which --agent-only keeps")


def _build(options: argparse.Namespace) -> None:
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise FmctlError("an image cannot be built", why=f"{', '.join(missing)} missing", fix="run tools/setup-image")
    if options.agent_only:
        image.replace_agent(options.image, options.output, lock.read(options.lock))
        return
    image.build(
        image.Request(
            output=options.output,
            lock=options.lock,
            mode=options.mode,
            platform=options.platform or "hgx-h100-8",
            branch=options.driver or "",
            packages=options.packages,
            extra=options.extra or (),
        )
    )


def _run(name: str, action: Callable[[], object]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        action()
    except FmctlError as error:
        lines = [f"service-vm/{name}: {error.what}"]
        lines += [f"  why: {error.why}"] if error.why else []
        lines += [f"  do:  {error.fix}"] if error.fix else []
        sys.stderr.write("\n".join(lines) + "\n")
        return STALE if isinstance(error, StaleLock) else USAGE if isinstance(error, BadRequest) else FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
