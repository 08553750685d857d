"""Our code that runs inside supervisord: ``watchdog`` (which process to kill), ``beats`` (how it learns of them),
``wakeup``, ``ready``, ``sockets`` and ``logs``.

``__main__`` is supervisord with ``logs``. supervisord loads the others by its one means for foreign code, the
``[rpcinterface:...]`` section. supervisord has one thread, which must never wait, and an exception that reaches its
loop ends the node. So nothing here blocks, and failures are logged.
"""
