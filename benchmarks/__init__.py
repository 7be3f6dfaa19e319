"""The project's own benchmark: `python -m benchmarks` (`--help`, docs/performance.md)."""
