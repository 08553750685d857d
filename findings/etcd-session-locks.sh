#!/usr/bin/env bash
# etcd's client v3.5.17 for Go (package concurrency), with etcd 3.4.23 of Debian 12.
# A good guess: two mutexes of one name exclude each other.
# What they do: the key of a lock is the name and the session's lease. Two mutexes of one session are the same key: both lock at once, and when the first one unlocks, the second
# has lost the lock without a word; another session gets it.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

apt-get -qq -o APT::Sandbox::User=root download etcd-server=3.4.23-4+b4 && dpkg -x etcd-server_*.deb .
ports=$(python3 -c 'import socket; s = [socket.socket() for _ in "ab"]; [x.bind(("127.0.0.1", 0)) for x in s]; print(*(x.getsockname()[1] for x in s))')
read -r port peer <<<"$ports"
usr/bin/etcd --data-dir data --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$peer" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer" --initial-cluster "default=http://127.0.0.1:$peer" >log 2>&1 &
for _ in $(seq 100); do curl -s "http://127.0.0.1:$port/health" | grep -q true && break; sleep 0.1; done

cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func main() {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}})
	if err != nil {
		panic(err)
	}
	session := func() *concurrency.Session {
		session, err := concurrency.NewSession(client)
		if err != nil {
			panic(err)
		}
		return session
	}
	lock := func(who string, mutex *concurrency.Mutex) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if mutex.Lock(ctx) == nil {
			fmt.Println(who, "has the lock")
		} else {
			fmt.Println(who, "waits")
		}
	}
	one, two := session(), session()
	first, second, other := concurrency.NewMutex(one, "/lock"), concurrency.NewMutex(one, "/lock"), concurrency.NewMutex(two, "/lock")
	lock("the first mutex", first)
	lock("a second one of the session", second)
	lock("one of another session", other)
	first.Unlock(context.Background())
	fmt.Println("the first one unlocks")
	lock("one of another session", other)
	fmt.Println("the second one's Unlock:", second.Unlock(context.Background()))
}
GO
cat >go.mod <<'MOD'
module example.test/finding

go 1.21

require go.etcd.io/etcd/client/v3 v3.5.17
MOD
export GOFLAGS=-modcacherw
go mod tidy >/dev/null 2>&1
go run . "127.0.0.1:$port" 2>/dev/null | tee seen
diff seen - <<'SEEN'
the first mutex has the lock
a second one of the session has the lock
one of another session waits
the first one unlocks
one of another session has the lock
the second one's Unlock: <nil>
SEEN
