"""Rehearsal: the pushed kernel in a fake /kaggle under the competition's limits, and the forecast it gives.

In: a bundle, a folder of clips, limits. Out: PASS or FAIL per limit for the hidden test set. Runs on the
user's machine, never on Kaggle. Predicts nothing itself: the very kernel that is pushed does.
"""
