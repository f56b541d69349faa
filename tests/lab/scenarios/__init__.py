# SPDX-License-Identifier: Apache-2.0
"""The lab's scenarios."""

ROUNDS = {
    "life": ("hardware", "servicevm", "partitions"),
    "images": ("images", "vsock"),
    "deaths": ("deaths",),
    "gate": ("gate",),
}
"""The modules here, in the order in which they run: each variant is booted once for each round."""
ON_REQUEST = ("deaths", "gate")
"""Rounds that run only with `--all`, since not every scenario in them was seen to pass since GPUs are gated."""
