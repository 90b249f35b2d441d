"""``python -m benchmarks``: all of them, one after the other, the shortest first."""

from benchmarks import anomaly, growth, limit, speed, startup

for benchmark in (startup, limit, anomaly, growth, speed):
    benchmark.main()
