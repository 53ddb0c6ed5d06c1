"""Generated from protos/libp2p by tools/gen_protos.py; do not edit."""
