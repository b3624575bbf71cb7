"""The coordinator: rounds, aggregation, checkpoints. It never sees a record."""
