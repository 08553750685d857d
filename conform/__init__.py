"""The promises of the two interfaces that a process of somebody else can take: containerd's content store and its
snapshotter. Each promise is a rule: a coroutine function that calls the interface, and raises :class:`rules.Broken`
where the answer is another.

The rules are in one place for two users: the suites in tests/suites make a test of each, which runs on every life of
the interface, and ``splitd conform`` runs them on a process at an address. So a rule is added once.
"""
