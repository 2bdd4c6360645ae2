"""The SqueezeNet paper: its claims and tables, beside what runs measured."""
