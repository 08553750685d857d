// Command chat loads a server of gRPC's TestService as honest clients do that say much in small pieces, and exits with 1 at the first call that fails,
// or if another call of its connection, open meanwhile, does not outlive it.
//
// grpc-go's own interop client says little. What a client adds to its messages (window updates, pings, resets) shows only where there are many of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

var (
	address = flag.String("address", "", "of the server")
	mode    = flag.String("mode", "", "pingpong, answers, uploads, unary, cancels or late")
	count   = flag.Int("count", 1000, "messages of each stream, or calls")
	size    = flag.Int("size", 1, "bytes of a message")
	streams = flag.Int("streams", 1, "at once, on one connection")
)

var modes = map[string]func(context.Context, testpb.TestServiceClient) error{
	"pingpong": pingpong, "answers": answers, "uploads": uploads, "unary": unary, "cancels": cancels, "late": late,
}

func main() {
	flag.Parse()
	work := modes[*mode]
	if work == nil {
		fail(fmt.Errorf("-mode %q: there is none", *mode))
	}
	connection, err := grpc.Dial(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fail(err)
	}
	defer connection.Close()
	client := testpb.NewTestServiceClient(connection)
	other, err := client.FullDuplexCall(context.Background())
	if err == nil {
		err = exchange(other, asked(1))
	}
	if err != nil {
		fail(err)
	}
	var all sync.WaitGroup
	for i := 0; i < *streams; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := work(context.Background(), client); err != nil {
				fail(err)
			}
		}()
	}
	all.Wait()
	if err := exchange(other, asked(1)); err != nil {
		fail(fmt.Errorf("another call of the connection: %w", err))
	}
}

func exchange(stream testpb.TestService_FullDuplexCallClient, request *testpb.StreamingOutputCallRequest) error {
	if err := stream.Send(request); err != nil && err != io.EOF { // Recv tells why
		return err
	}
	_, err := stream.Recv()
	return err
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "chat:", err)
	os.Exit(1)
}

func payload() *testpb.Payload { return &testpb.Payload{Body: make([]byte, *size)} }

func asked(messages int) *testpb.StreamingOutputCallRequest {
	request := &testpb.StreamingOutputCallRequest{}
	for i := 0; i < messages; i++ {
		request.ResponseParameters = append(request.ResponseParameters, &testpb.ResponseParameters{Size: int32(*size)})
	}
	return request
}

// pingpong sends a message, waits for its answer, and so on: a Write in small pieces.
func pingpong(ctx context.Context, client testpb.TestServiceClient) error {
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	request := asked(1)
	request.Payload = payload()
	for i := 0; i < *count; i++ {
		if err := exchange(stream, request); err != nil {
			return fmt.Errorf("answer %d: %w", i, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if _, err = stream.Recv(); err != io.EOF {
		return fmt.Errorf("the end: %w", err)
	}
	return nil
}

// answers reads a stream of many: a Read, or events.
func answers(ctx context.Context, client testpb.TestServiceClient) error {
	stream, err := client.StreamingOutputCall(ctx, asked(*count))
	if err != nil {
		return err
	}
	for i := 0; i < *count; i++ {
		if _, err := stream.Recv(); err != nil {
			return fmt.Errorf("answer %d: %w", i, err)
		}
	}
	if _, err = stream.Recv(); err != io.EOF {
		return fmt.Errorf("the end: %w", err)
	}
	return nil
}

// uploads sends many, which nobody answers before the last.
func uploads(ctx context.Context, client testpb.TestServiceClient) error {
	stream, err := client.StreamingInputCall(ctx)
	if err != nil {
		return err
	}
	for i := 0; i < *count; i++ {
		if err := stream.Send(&testpb.StreamingInputCallRequest{Payload: payload()}); err != nil {
			break // CloseAndRecv tells why
		}
	}
	_, err = stream.CloseAndRecv()
	return err
}

// unary calls, one after the other.
func unary(ctx context.Context, client testpb.TestServiceClient) error {
	for i := 0; i < *count; i++ {
		if _, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: int32(*size)}); err != nil {
			return fmt.Errorf("call %d: %w", i, err)
		}
	}
	return nil
}

// cancels begins calls and gives them up, one after the other: a user who presses Ctrl-C in a loop.
func cancels(ctx context.Context, client testpb.TestServiceClient) error {
	for i := 0; i < *count; i++ {
		ctx, cancel := context.WithCancel(ctx)
		stream, err := client.FullDuplexCall(ctx)
		if err == nil {
			err = stream.Send(asked(1))
		}
		cancel()
		if err != nil && err != io.EOF {
			return fmt.Errorf("call %d: %w", i, err)
		}
	}
	return nil
}

// late goes on sending for a while to calls that have been refused.
func late(ctx context.Context, client testpb.TestServiceClient) error {
	for i := 0; i < *count; i++ {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			return err
		}
		refused := &testpb.StreamingOutputCallRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(codes.FailedPrecondition)}}
		for err == nil {
			err = stream.Send(refused)
			refused = &testpb.StreamingOutputCallRequest{Payload: payload()}
		}
		if _, err := stream.Recv(); status.Code(err) != codes.FailedPrecondition {
			return fmt.Errorf("call %d: %w", i, err)
		}
	}
	return nil
}
