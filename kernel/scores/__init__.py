"""Scores: from every net's probabilities to submission.csv.

In: f32[N, K] per net with gaps. Out: one whole table, and the file, replaced in one step. Owns the means, the
fallbacks for what is missing, the steps on the finished table, the metrics, and the validator of the file.
Runs no net.
"""
