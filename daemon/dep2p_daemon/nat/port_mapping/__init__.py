"""Ports that the default gateway maps for us: PCP, and NAT-PMP where it speaks no PCP."""
