"""What finished runs say when they are laid side by side; needs no torch."""
