// A client of dep2pd in Go, made from the .proto files alone.
//
//	go run . -socket /run/user/1000/dep2p/dep2pd.sock -peer /ip4/.../p2p/12D3KooW...
//
// It tells who the daemon is, dials the peer, sends a text to its echo and
// prints what comes back.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	dep2pv1 "github.com/dep2p/dep2pd/gen/dep2p/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

func main() {
	socket := flag.String("socket", os.Getenv("DEP2P_SOCKET"), "the daemon's unix socket")
	peer := flag.String("peer", "", "peer id or multiaddr to talk to")
	text := flag.String("text", "Hello via Relay!", "what to send")
	flag.Parse()
	if err := run(*socket, *peer, *text); err != nil {
		fmt.Fprintln(os.Stderr, explain(err))
		os.Exit(1)
	}
}

// explain adds to an error what the daemon says of it: a reason for programs,
// and what to do about it.
func explain(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == "dep2p" {
			message := status.Convert(err).Message()
			return fmt.Sprintf("%s: %s (%s)", info.GetReason(), message, info.GetMetadata()["remedy"])
		}
	}
	return err.Error()
}

func run(socket, peer, text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dialUnix := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	conn, err := grpc.DialContext(ctx, "localhost", grpc.WithInsecure(), grpc.WithContextDialer(dialUnix))
	if err != nil {
		return err
	}
	defer conn.Close()

	node, err := dep2pv1.NewNodeServiceClient(conn).GetNode(ctx, &dep2pv1.GetNodeRequest{})
	if err != nil {
		return err
	}
	fmt.Println("node:", node.GetPeerId())

	dialled, err := dep2pv1.NewPeerServiceClient(conn).Dial(ctx, &dep2pv1.DialRequest{Peer: peer})
	if err != nil {
		return err
	}
	remote := dialled.GetConnection().GetPeerId()
	fmt.Println("connected:", remote, dialled.GetConnection().GetPath())

	echoed, err := echo(ctx, dep2pv1.NewStreamServiceClient(conn), remote, []byte(text))
	if err != nil {
		return err
	}
	fmt.Println("echo:", string(echoed))
	return nil
}

// echo sends data over a stream, closes its half, and reads to the peer's end.
func echo(ctx context.Context, service dep2pv1.StreamServiceClient, peer string, data []byte) ([]byte, error) {
	stream, err := service.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	open := &dep2pv1.OpenStreamRequest_Open{Peer: peer, Protocols: []string{"/dep2p/echo/1.0.0"}}
	requests := []*dep2pv1.OpenStreamRequest{
		{Message: &dep2pv1.OpenStreamRequest_Open_{Open: open}},
		{Message: &dep2pv1.OpenStreamRequest_Data{Data: data}},
	}
	for _, request := range requests {
		// On io.EOF the call has ended; Recv says why.
		if err := stream.Send(request); err != nil && err != io.EOF {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var received []byte
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return received, nil
		}
		if err != nil {
			return nil, err
		}
		received = append(received, response.GetData()...)
	}
}
