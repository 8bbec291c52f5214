//! How long things took: bounded latency distributions.
