"""``python -m benchmarks``: all of them, one after the other, the shortest first."""

from benchmarks import growth, limit, speed, startup

for benchmark in (startup, limit, growth, speed):
    benchmark.main()
