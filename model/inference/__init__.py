"""What reads notes: the engine, its scheduler, and the runtimes that compute."""
