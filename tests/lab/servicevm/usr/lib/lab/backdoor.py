# SPDX-License-Identifier: Apache-2.0
"""A shell for the lab's scenarios inside the Service VM: one line in over vsock, what it printed out.

It is what lets a scenario kill the agent or Fabric Manager. Nothing but the lab's image has it.
"""

from __future__ import annotations

import socket
import subprocess

PORT = 7
HOST = 2


def main() -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listening:
        listening.bind((socket.VMADDR_CID_ANY, PORT))
        listening.listen()
        while True:
            connection, (peer, _) = listening.accept()
            with connection:
                if peer == HOST:
                    line = connection.makefile().readline()
                    done = subprocess.run(
                        ["/bin/sh", "-c", line],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                    )
                    connection.sendall(done.stdout)


if __name__ == "__main__":
    main()
