"""supervisord as a node runs it: ``python -m deploy.inside`` in the place of ``python -m supervisor.supervisord``, with our log files."""

from __future__ import annotations

from supervisor import supervisord

from deploy.inside import logs

if __name__ == "__main__":
    logs.install()
    supervisord.main()
