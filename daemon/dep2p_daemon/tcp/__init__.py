"""TCP, Noise and Yamux: listener, dialer and the upgrade of any byte channel."""
