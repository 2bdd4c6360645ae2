"""Counting bytes: what is handed to a collective, what must be sent for it, and what the kernel saw leave."""
