# SPDX-License-Identifier: Apache-2.0
"""The build of the Service VM's image, behind service-vm/build and service-vm/update-lock."""

from pathlib import Path

RECIPE = Path(__file__).parent.parent
CHECKOUT = RECIPE.parent
GRACE = 30.0
"""Seconds that mmdebstrap has, once it is to end, to unmount what it mounted."""
