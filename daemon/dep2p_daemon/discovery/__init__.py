"""Finding addresses: DNS, and later bootstrap, relays and mDNS."""
