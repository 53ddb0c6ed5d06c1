"""What dep2pd costs: CPU-seconds per GB, latencies and memory of real, separate processes.

`python -m bench` runs every scenario and writes `docs/benchmarks.md` and `docs/benchmarks.json`;
`python -m bench NAME...` runs some and prints them; `python -m bench loss` (root) measures bad
links in network namespaces and keeps its own table in the same files. Nothing here asserts: a
figure that misses its target is reported as missed.
"""
