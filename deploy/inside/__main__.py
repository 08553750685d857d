"""supervisord as a node runs it: ``python -m deploy.inside`` instead of ``python -m supervisor.supervisord``, with our
log files, and a quicker start of its processes.

SIGUSR1 makes it write its stack to its standard error, as the processes that it runs write theirs into their logs.
supervisord alone would end, and the whole node with it.
"""

from __future__ import annotations

import faulthandler
import signal

from supervisor import supervisord

from deploy.inside import children, copies, logs, seeds

if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logs.install()
    children.install()
    if (made := copies.install()) is not None:
        seeds.install(made)
    supervisord.main()
