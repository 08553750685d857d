"""The collector: takes what nobody needs, records first, then the raw things that no record names.

Every record is reached from a *root* (:mod:`.mark` says what those are) or it is *dead*. A collection removes the dead
records, some at a time. Then each backend is *swept*: the raw things that neither a record nor an open intent names are
removed there (:mod:`.sweep`). The two are apart, so that a backend which hangs or is away postpones its own sweep and
nothing else.

containerd holds one lock over marking, sweeping and the backends' calls. Here nobody waits for a collection, but for
the one raw thing that is being removed just now: it has a *mark*, and who would make a record of it, or an intent that
names it, waits for that to go (``services.metadata.store.Mark``).

    mark.py       from roots along references: which records live          (pure)
    plan.py       which raw things of a backend are victims, in what order (pure)
    sweep.py      one backend: list, decide and mark, remove, unmark
    pace.py       when to collect: containerd's scheduler                  (pure)
    collector.py  the loop that does it all
    raw.py        what a backend must do for the collector; remote.py: through the gateway; memory.py: the fake
"""

from services.metadata.gc.collector import Collector
from services.metadata.gc.config import Config

__all__ = ["Collector", "Config"]
