"""The command line of the daemon: a client of its public API and of nothing else."""
