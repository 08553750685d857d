"""What of ours runs inside supervisord: ``wakeup``, ``watchdog`` (whom to kill) and ``beats`` (how it is told),
``logs``.

``__main__`` is supervisord with ``logs``; the others it loads by its one means for code of others, the
``[rpcinterface:...]`` section. It has one thread, which must never wait, and an exception that reaches its loop ends
the node: so nothing here blocks, and what fails is logged.
"""
