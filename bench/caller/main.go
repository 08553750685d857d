// Command caller calls one method of a gRPC server on a unix socket, over and over, and prints what it measured as JSON.
//
// It is the benchmark's client for calls that take less than a millisecond. ctr, the kubelet and dockerd use grpc-go too, and
// grpc-go is fast enough that the ratio of two servers is theirs, not the client's. Messages are bytes, so it needs no
// generated code.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const warmUp = 20

var (
	socket    = flag.String("socket", "", "path of the server's socket")
	method    = flag.String("method", "", "/package.Service/Method")
	namespace = flag.String("namespace", "", "containerd namespace")
	request   = flag.String("request", "", "the request message, in hex")
	clients   = flag.Int("clients", 1, "callers at once, each on a connection of its own")
	calls     = flag.Int("calls", 1000, "calls of each, after a few that do not count")
	stream    = flag.Bool("stream", false, "one call of a server stream: read all of it")
)

// message is a protobuf message that is not decoded.
type message []byte

type codec struct{}

func (codec) Name() string                       { return "proto" }
func (codec) Marshal(v any) ([]byte, error)      { return *v.(*message), nil }
func (codec) Unmarshal(data []byte, v any) error { *v.(*message) = data; return nil }

type result struct {
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Rate    float64 `json:"per_second"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

func main() {
	flag.Parse()
	body, err := hex.DecodeString(*request)
	if err != nil {
		fail(fmt.Errorf("-request: %w", err))
	}
	measure := unary
	if *stream {
		measure = readStream
	}
	found, err := measure(message(body))
	if err != nil {
		fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "caller:", err)
	os.Exit(1)
}

func dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(16<<20)))
}

func outgoing() context.Context {
	if *namespace == "" {
		return context.Background()
	}
	return metadata.AppendToOutgoingContext(context.Background(), "containerd-namespace", *namespace)
}

// unary makes all calls. It returns the quantiles of a call's time, and the rate of all calls together.
func unary(body message) (*result, error) {
	connections := make([]*grpc.ClientConn, *clients)
	for i := range connections {
		connection, err := dial()
		if err != nil {
			return nil, err
		}
		defer connection.Close()
		connections[i] = connection
		for j := 0; j < warmUp; j++ {
			var answer message
			if err := connection.Invoke(outgoing(), *method, &body, &answer); err != nil {
				return nil, err
			}
		}
	}
	times := make([][]time.Duration, *clients)
	failures := make([]error, *clients)
	var all sync.WaitGroup
	begun := time.Now()
	for i, connection := range connections {
		all.Add(1)
		go func(i int, connection *grpc.ClientConn) {
			defer all.Done()
			ctx := outgoing()
			for j := 0; j < *calls && failures[i] == nil; j++ {
				var answer message
				start := time.Now()
				failures[i] = connection.Invoke(ctx, *method, &body, &answer)
				times[i] = append(times[i], time.Since(start))
			}
		}(i, connection)
	}
	all.Wait()
	seconds := time.Since(begun).Seconds()
	var each []time.Duration
	for i := range times {
		if failures[i] != nil {
			return nil, failures[i]
		}
		each = append(each, times[i]...)
	}
	sort.Slice(each, func(a, b int) bool { return each[a] < each[b] })
	return &result{P50: milliseconds(each[len(each)/2]), P99: milliseconds(each[len(each)*99/100]), Rate: float64(len(each)) / seconds, Seconds: seconds}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// readStream reads one server stream to its end.
func readStream(body message) (*result, error) {
	connection, err := dial()
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	begun := time.Now()
	opened, err := connection.NewStream(outgoing(), &grpc.StreamDesc{ServerStreams: true}, *method)
	if err != nil {
		return nil, err
	}
	if err := opened.SendMsg(&body); err != nil {
		return nil, err
	}
	if err := opened.CloseSend(); err != nil {
		return nil, err
	}
	var size int64
	for {
		var answer message
		err := opened.RecvMsg(&answer)
		if err == io.EOF {
			return &result{Bytes: size, Seconds: time.Since(begun).Seconds()}, nil
		}
		if err != nil {
			return nil, err
		}
		size += int64(len(answer))
	}
}
