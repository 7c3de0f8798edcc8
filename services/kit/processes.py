"""How a process that we start is kept from outliving us."""

import os
import signal


def tied_to_us(death_signal: signal.Signals) -> list[str]:
    """Returns the command prefix by which the kernel sends the program a signal when we die.

    A function that runs in the child between fork and exec could do the same, but forking this
    process, in which gRPC has threads, is not safe; without such a function Python does not fork.
    """
    return [
        "setpriv",
        f"--pdeathsig={death_signal.name.removeprefix('SIG')}",
        # We may have died before the tie held.
        *("sh", "-c", 'test "$PPID" = "$0" && exec "$@"', str(os.getpid())),
    ]
