"""Circuit relay v2: messages, admission, limits, vouchers, server and client."""
