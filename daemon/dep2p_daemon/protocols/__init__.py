"""Small protocols every node speaks: identify, ping, echo, perf."""
