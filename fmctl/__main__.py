# SPDX-License-Identifier: Apache-2.0
"""`python -m fmctl`."""

from fmctl.cli.main import main

if __name__ == "__main__":
    main()
