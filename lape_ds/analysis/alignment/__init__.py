"""Cross-lingual alignment of a run: are the same sentences alike in two languages, before and after training?"""
