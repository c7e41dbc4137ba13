"""The measured proof of speed: every fast path of the library against a plain twin and against the machine.

    python -m benchmarks              every stage at full size; writes results/bench.json (`make bench`)
    python -m benchmarks values edit  some stages, printed only
    python -m benchmarks --quick      every stage at a tiny size, on a random model; printed only

A stage (`benchmarks.stages`) makes inputs and names the library's path, the twin (`benchmarks.reference`) and
where it can be counted (`benchmarks.counts`) the work that is needed. `benchmarks.contest` runs both on the
same inputs, compares the results and only then gives times.
"""
