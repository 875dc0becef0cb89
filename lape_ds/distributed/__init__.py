"""The ranks of a job: starting them on machines, their heartbeat, what they agree on, how they stop."""
