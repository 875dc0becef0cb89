"""What a sweep found: gain against forgetting, a frontier for each method."""
