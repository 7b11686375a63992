"""Parts that several benchmarks share: the service under test, load, input data, statistics and result files."""
