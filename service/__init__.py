"""The online half: HTTP, Redis, the live index and the queue in front of the engine."""
