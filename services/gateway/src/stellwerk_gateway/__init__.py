"""The one HTTP and gRPC door."""
