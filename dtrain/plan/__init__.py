"""What a job would put on the network, before anything runs."""
