"""What a training will cost before there is one: bytes by kind, communication and time of every way to run it."""
