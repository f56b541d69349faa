# SPDX-License-Identifier: Apache-2.0
"""The lab's scenarios."""

ORDER = ("hardware", "servicevm", "partitions", "deaths", "images", "vsock")
"""The modules here, in the order in which they run."""
