"""The project's own benchmark: `python -m benchmarks` (docs: `--help`, README.md's section on speed)."""
