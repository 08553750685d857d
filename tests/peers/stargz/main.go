// Serves stargz-snapshotter's snapshotter at a socket, for tests/peers: its own program is in a Go module apart, which
// the Go module proxy does not have.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"

	"github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	levels "github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/pelletier/go-toml"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

func main() {
	address := flag.String("address", "", "path of the socket")
	root := flag.String("root", "", "directory of its files")
	path := flag.String("config", "", "configuration, in its own form")
	level := flag.String("log-level", "info", "level of its log")
	flag.Parse()
	if err := serve(*address, *root, *path, *level); err != nil {
		log.Fatal(err)
	}
}

func serve(address, root, path, level string) error {
	if err := levels.SetLevel(level); err != nil {
		return err
	}
	var config service.Config
	tree, err := toml.LoadFile(path)
	if err != nil {
		return err
	}
	if err := tree.Unmarshal(&config); err != nil {
		return err
	}
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), root, &config)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshots.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGINT, unix.SIGTERM)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-end:
		return nil
	}
}
