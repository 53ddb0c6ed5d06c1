"""From relayed to direct: observed addresses, hole punching, and the record of how it went."""
