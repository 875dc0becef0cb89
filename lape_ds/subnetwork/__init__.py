"""Training of some neurons only: the masked engine and the methods it is compared with."""
