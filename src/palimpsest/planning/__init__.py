"""What a profile will take: bytes to fetch, memory and time, before anything runs."""
