"""The relay server's program: `dep2pd --preset relay` with a console for people."""
