# SPDX-License-Identifier: Apache-2.0
"""Host-side controller for NVIDIA Fabric Manager in shared NVSwitch mode."""

__version__ = "0.1.0"
