#!/usr/bin/env bash
# ttrpc v1.2.7 for Go, with which containerd talks to its shims.
# A good guess: a client that cancels a call cancels the handler's context at the server, as with gRPC.
# What it does: the protocol has no message for that. The client's call returns at once, the handler's context goes on, and what the handler answers is dropped. It ends by the
# deadline that came with the call, or with the connection.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'rm -rf "$work"' EXIT

cat >main.go <<'GO'
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

func main() {
	server, err := ttrpc.NewServer()
	if err != nil {
		panic(err)
	}
	started, ended := make(chan bool, 1), make(chan error, 1)
	server.RegisterService("example.Waits", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Wait": func(ctx context.Context, unmarshal func(any) error) (any, error) {
			started <- true
			<-ctx.Done()
			ended <- ctx.Err()
			return &emptypb.Empty{}, nil
		},
	}})
	listener, err := net.Listen("unix", "socket")
	if err != nil {
		panic(err)
	}
	go server.Serve(context.Background(), listener)
	call := func(ctx context.Context, stop func(*ttrpc.Client)) {
		connection, err := net.Dial("unix", "socket")
		if err != nil {
			panic(err)
		}
		client := ttrpc.NewClient(connection)
		returned := make(chan error, 1)
		go func() { returned <- client.Call(ctx, "example.Waits", "Wait", &ttrpc.Request{}, &ttrpc.Response{}) }()
		<-started
		stop(client)
		err = <-returned
		fmt.Println("  the client's error is a cancellation:", errors.Is(err, context.Canceled))
		select {
		case err := <-ended:
			fmt.Println("  the handler's context:", err)
		case <-time.After(2 * time.Second):
			fmt.Println("  the handler's context: lives")
			client.Close()
			fmt.Println("  after the connection's end:", <-ended)
		}
	}
	fmt.Println("cancelled:")
	ctx, cancel := context.WithCancel(context.Background())
	call(ctx, func(*ttrpc.Client) { cancel() })
	fmt.Println("with a deadline of a second, and cancelled:")
	ctx, cancel = context.WithTimeout(context.Background(), time.Second)
	call(ctx, func(*ttrpc.Client) { cancel() })
}
GO
cat >go.mod <<'MOD'
module example.test/finding

go 1.21

require (
	github.com/containerd/ttrpc v1.2.7
	google.golang.org/protobuf v1.36.6
)
MOD
export GOFLAGS=-modcacherw
go mod tidy >/dev/null 2>&1
go run . | tee seen
diff seen - <<'SEEN'
cancelled:
  the client's error is a cancellation: true
  the handler's context: lives
  after the connection's end: context canceled
with a deadline of a second, and cancelled:
  the client's error is a cancellation: true
  the handler's context: context deadline exceeded
SEEN
