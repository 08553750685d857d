#!/usr/bin/env bash
# containerd 1.6.20 of Debian 12 with `[metrics] address`, and a container of runc (root): the Prometheus page's figures of the container's cgroup.
# A good guess: what only grows is a counter whose name ends in _total, and what ends in _bytes is a number of bytes.
# What it does: all figures of the cgroup are gauges, the processor time too. container_memory_pgfault_bytes is the number of page faults, as memory.stat of the kernel counts
# them; pgmajfault, pgpgin and pgpgout (v1), pgscan and pgsteal (v2) carry the same suffix. rate() works on them all the same; a dashboard that shows units is wrong.
set -euo pipefail
work=$(mktemp -d /tmp/f.XXXX); cd "$work"
trap 'kill %1 2>/dev/null || true; wait; umount -l "$work"/state/*/*/*/rootfs 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download containerd=1.6.20~ds1-1+deb12u3 runc=1.1.5+ds1-1+deb12u1 busybox-static=1:1.35.0-4+deb12u1+b1
for package in *.deb; do dpkg -x "$package" .; done
mkdir -p image/bin && cp bin/busybox image/bin/ && ln -s busybox image/bin/sh
cat >conf <<CONF
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$work/c.sock"
[metrics]
address = "127.0.0.1:31337"
CONF
PATH="$work/usr/bin:$work/usr/sbin:$PATH" usr/bin/containerd -c conf >log 2>&1 &
ctr="usr/bin/ctr -a $work/c.sock -n finding"
until $ctr version >/dev/null 2>&1; do sleep 0.1; done
$ctr run -d --rootfs "$work/image" counted /bin/busybox sleep 100
page() { python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:31337/v1/metrics").read().decode())' | grep 'container_\(memory_pgfault_bytes\|cpu_\(total_nanoseconds\|usage_usec_microseconds\)\)'; }
pid=$($ctr tasks ls | awk '$1 == "counted" { print $2 }')
if [ -d /sys/fs/cgroup/memory ]; then stat=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/$pid/cgroup)/memory.stat; else stat=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)/memory.stat; fi
faults=$(awk '$1 == "pgfault" { print $2 }' "$stat")
{
  page | sed -n 's/^# TYPE container_\(memory_pgfault_bytes\) /\1: /p; s/^# TYPE container_cpu_\(total_nanoseconds\|usage_usec_microseconds\) /processor time: /p' | sort
  page | awk -v faults="$faults" '/^container_memory_pgfault_bytes/ { print "the kernel counts as many page faults:", ($NF + 0 == faults + 0 ? "yes" : "no, " faults " and " $NF) }'
} | tee seen
$ctr tasks rm -f counted >/dev/null 2>&1 || true
diff seen - <<'SEEN'
memory_pgfault_bytes: gauge
processor time: gauge
the kernel counts as many page faults: yes
SEEN
