# SPDX-License-Identifier: Apache-2.0
"""The build of the Service VM's image, behind service-vm/build and service-vm/update-lock."""

from pathlib import Path

RECIPE = Path(__file__).parent.parent
CHECKOUT = RECIPE.parent
