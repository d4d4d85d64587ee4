"""Named, seeded benchmarks; every figure in docs comes from one of them."""
