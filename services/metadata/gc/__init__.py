"""The garbage collector: it removes dead records, and then the raw things that no record names.

A record lives if it can be reached from a *root* (:mod:`.mark` lists the roots); otherwise it is *dead*. A collection
removes the dead records, some at a time. Then it *sweeps* each backend: it removes the raw things there that neither a
record nor an open intent names (:mod:`.sweep`). The two phases are separate, so that a backend that hangs or is away
postpones only its own sweep.

containerd holds one lock over marking, sweeping and the backends' calls. Here a call waits only for the one raw thing
that is being removed at that moment: the thing has a *mark*, and a call that would create a record of it, or an intent
that names it, waits until the mark is cleared (``services.metadata.store.Mark``).

    mark.py       which records live: from roots along references        (pure)
    changes.py    what was written since the records were read           (pure)
    plan.py       the victims of a backend, and their order              (pure)
    sweep.py      one backend: list, decide and mark, remove, unmark
    guard.py      what is held back when the database may be an old copy
    pace.py       when to collect: containerd's scheduler                (pure)
    collector.py  the loop that runs all this
    raw.py        what a backend must do for the collector; remote.py: through the gateway; memory.py: the fake
"""
