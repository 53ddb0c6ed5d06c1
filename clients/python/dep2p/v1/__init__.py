"""Generated from protos/dep2p/v1 by tools/gen_protos.py; do not edit."""
