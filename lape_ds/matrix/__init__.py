"""Models × languages × methods: run to the end, looked at, planned, and set side by side in one table."""
