"""The engine that reads notes, its scheduler, and the runtimes that compute."""
