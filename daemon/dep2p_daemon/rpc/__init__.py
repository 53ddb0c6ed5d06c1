"""The gRPC API: thin servicers over the rooms, roles and error mapping."""
