#!/usr/bin/env bash
# xfsprogs 6.1.0 (Debian 12): the exit status of xfs_quota and xfs_io, which snapshotters and storage drivers run to limit a container's room.
# A good guess: a command that fails, or that does not exist, gives an exit status other than 0, as it does for a limit that cannot be read.
# What they do: a limit for a mount that is not there, a project for a directory that is not there, and a command that is misspelt end with 0 and a message; so a container has no limit, and
# its runtime does not know. `state` where quotas are off prints nothing, and ends with 0.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'umount mounted 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download xfsprogs=6.1.0-1 libinih1=55-1 liburcu8=0.13.2-1
for package in *.deb; do dpkg -x "$package" .; done
export LD_LIBRARY_PATH=$work/usr/lib/x86_64-linux-gnu:$work/lib/x86_64-linux-gnu PATH=$work/sbin:$work/usr/sbin:$PATH
mkdir mounted; truncate -s 400M image; mkfs.xfs -q image; mount -o loop image mounted # without project quotas
status() { local status=0; "$@" >answer 2>&1 || status=$?; echo "${*:1}: $status, $(tr '\n' ' ' <answer | sed "s,$work/,,g" | head -c 120)"; }
{
  status xfs_quota -x -c 'limit -p bhard=1m 5' mounted
  status xfs_quota -x -c 'limit -p bhard=1m 5' missing
  status xfs_quota -x -c 'limit -p bhard=lots 5' mounted
  status xfs_quota -x -c 'project -s -p missing 5' mounted
  status xfs_quota -x -c 'limt -p bhard=1m 5' mounted
  status xfs_io -c 'pwrit 0 4k' image
  status xfs_io -c 'pwrite 0 lots' image
  status xfs_quota -x -c 'state -p' mounted
} | tee seen
diff seen - <<'SEEN'
xfs_quota -x -c limit -p bhard=1m 5 mounted: 1, xfs_quota: cannot set limits: Function not implemented 
xfs_quota -x -c limit -p bhard=1m 5 missing: 0, xfs_quota: cannot setup path for mount missing: No such file or directory 
xfs_quota -x -c limit -p bhard=lots 5 mounted: 1, xfs_quota: Error: could not parse size lots. xfs_quota: unrecognised argument bhard=lots 
xfs_quota -x -c project -s -p missing 5 mounted: 0, xfs_quota: cannot setup path for project dir missing: No such file or directory 
xfs_quota -x -c limt -p bhard=1m 5 mounted: 0, command "limt" not found 
xfs_io -c pwrit 0 4k image: 0, command "pwrit" not found 
xfs_io -c pwrite 0 lots image: 1, non-numeric length argument -- lots 
xfs_quota -x -c state -p mounted: 0, 
SEEN
