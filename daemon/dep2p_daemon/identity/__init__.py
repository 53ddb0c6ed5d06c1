"""Keys, peer ids, signed envelopes and peer records."""
