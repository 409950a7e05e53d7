"""What metrics and strategies are given, by the names of their parameters: one table for both.

`blocks.SHARD_INPUTS` has what is known of each sample, `corpus.CORPUS_INPUTS` what holds for the
whole corpus. A metric gets the samples of one shard at a time, a strategy all candidates.
"""
