# SPDX-License-Identifier: Apache-2.0
"""The lab's scenarios."""

ROUNDS = {
    "life": ("hardware", "servicevm", "partitions", "deaths", "vsock"),
    "gate": ("gate", "images"),
}
"""The modules here, in the order in which they run: each variant is booted once for each round."""
