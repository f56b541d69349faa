# SPDX-License-Identifier: Apache-2.0
"""The same ports as `guest` and `host`, pretended: Fabric Manager's rules with no hardware behind them."""
