"""What a service of one's own is made of. A snapshotter or a content store is a class with containerd's methods; one
call serves it. docs/write-a-service.md walks through both.

===========================  ==========================================================================================
:mod:`splitd.service`        ``main(MySnapshotter)``: the process, with its socket, health, log, signals and traces
:mod:`splitd.snapshots`      what a snapshotter is, in types; the records of its snapshots
:mod:`splitd.content`        what a content store is, in types; locks on refs
:mod:`splitd.files`          files that survive a power cut
:mod:`splitd.errors`         the errors that a client may get
===========================  ==========================================================================================

The names in these modules are stable: a release that changes one says so in CHANGELOG.md, a version before. All other
packages beside this one (``services``, ``gateway`` and so on) are splitd itself, and change without notice.
"""
