"""The page that tells of runs: from what stages have written to one HTML file, every number with the file that it is from."""
