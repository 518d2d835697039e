package rpc_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"pgw/shared/rpc"
)

type health struct {
	healthpb.UnimplementedHealthServer
}

func (health) Check(context.Context, *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// BenchmarkCall makes the same call within the process and over loopback.
func BenchmarkCall(b *testing.B) {
	register := func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, health{}) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	register(server)
	go server.Serve(l)
	defer server.Stop()
	conn, err := rpc.Dial(l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	for name, conn := range map[string]grpc.ClientConnInterface{"way=in-process": rpc.InProcess(register, nil), "way=loopback": conn} {
		b.Run(name, func(b *testing.B) {
			client := healthpb.NewHealthClient(conn)
			b.ReportAllocs()
			for b.Loop() {
				if got, err := client.Check(b.Context(), &healthpb.HealthCheckRequest{Service: "db"}); err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
					b.Fatal(got, err)
				}
			}
		})
	}
}
