"""Engine: what runs next, on which device, over which rows, until everything is done or the time is up.

In: the guard's order. Out: submission.csv and report.json, better after every step. Owns the plan, the CPU
and the GPU schedule, and the journal that lets a restart go on. Computes nothing itself: sound, inference and
scores do.
"""
