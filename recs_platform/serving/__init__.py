"""What the shop's pages call: recommendations from Redis in milliseconds, and queries to the engine."""
