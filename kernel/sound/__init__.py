"""Sound: from the ids of a sample submission to the array that the store keeps for each row.

In: a clip folder, ids, a front end's keys. Out: `Clip` and `Row`, and per row one array[C, M, T] at full length.
Owns what becomes of broken, empty and over-long audio. Does not keep arrays (cache) and does not crop (inference).
"""
