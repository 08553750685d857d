#!/usr/bin/env bash
# grpc-go 1.64.1 and grpcio 1.85.3 as clients of a server that counts frames (h2 4.2.0): 200 calls, one after the other, each answered by a message of 7 bytes.
# A good guess: no window is short, so nobody sends a WINDOW_UPDATE; a PING is for a connection that is idle.
# What they do: grpc-go sends a WINDOW_UPDATE of the connection and a PING for each answer (its estimate of the bandwidth begins anew with each), grpcio two WINDOW_UPDATEs.
# So a server that takes many of such frames for a flood throws out clients that make small calls and nothing else.
set -euo pipefail
work=$(mktemp -d); cd "$work"
trap 'kill %1 2>/dev/null || true; rm -rf "$work"' EXIT

python3 -m venv v && v/bin/pip -q install h2==4.2.0 grpcio==1.85.3 2>/dev/null
cat >server.py <<'PYTHON'
import socket
from collections import Counter

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import PingReceived, StreamEnded, WindowUpdated

ANSWER = b"\0\0\0\0\2\x08\1"  # grpc.health.v1.HealthCheckResponse: SERVING

with socket.create_server(("127.0.0.1", 0)) as listener:
    with open("port", "w") as file:
        file.write(str(listener.getsockname()[1]))
    for client in "grpc-go", "grpcio":
        seen = Counter()
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        accepted, _ = listener.accept()
        accepted.sendall(connection.data_to_send())
        while seen["calls"] < 200 and (data := accepted.recv(65536)):
            for event in connection.receive_data(data):
                if isinstance(event, StreamEnded):
                    connection.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                    connection.send_data(event.stream_id, ANSWER)
                    connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
                    seen["calls"] += 1
                elif isinstance(event, PingReceived):
                    seen["PING"] += 1
                elif isinstance(event, WindowUpdated):
                    seen["WINDOW_UPDATE of a stream" if event.stream_id else "WINDOW_UPDATE of the connection"] += 1
            accepted.sendall(connection.data_to_send())
        for kind in "WINDOW_UPDATE of the connection", "WINDOW_UPDATE of a stream", "PING":
            print(f"{client}: {kind} for each answer: {seen[kind] / seen['calls']:.1f}", flush=True)
PYTHON
v/bin/python server.py >seen &
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done

mkdir client
cat >client/main.go <<'GO'
package main

import (
	"context"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	for range 200 {
		if _, err := health.NewHealthClient(connection).Check(context.Background(), &health.HealthCheckRequest{}); err != nil {
			log.Fatal(err)
		}
	}
}
GO
(cd client && go mod init client && go get google.golang.org/grpc@v1.64.1 && go get google.golang.org/grpc/health/grpc_health_v1@v1.64.1 && go build -o ../caller .) 2>/dev/null
./caller "127.0.0.1:$(cat port)"
v/bin/python - "127.0.0.1:$(cat port)" <<'PYTHON'
import sys
import grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    for _ in range(200):
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
PYTHON
wait
diff seen - <<'SEEN'
grpc-go: WINDOW_UPDATE of the connection for each answer: 1.0
grpc-go: WINDOW_UPDATE of a stream for each answer: 0.0
grpc-go: PING for each answer: 1.0
grpcio: WINDOW_UPDATE of the connection for each answer: 1.0
grpcio: WINDOW_UPDATE of a stream for each answer: 1.0
grpcio: PING for each answer: 0.0
SEEN
