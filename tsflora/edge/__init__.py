"""What a deployment would cost: traffic, compute, memory, radio. Pure functions with units; nothing here trains."""
