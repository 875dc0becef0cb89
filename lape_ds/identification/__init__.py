"""Identification: which neurons are a language's, counted over ranks, with how sure that is and the proof that they matter."""
