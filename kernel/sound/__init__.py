"""Sound: from the ids of a sample submission to the array that is stored for each row.

In: a clip folder, row ids, the keys of a front end. Out: rows, and for each an array[C, M, T] at full length.
The clip's way: `clips` (which file an id means), `rows` (which rows there are), `decode` (file -> wave),
`recording` (file -> waves of its windows), `loading` (all of it for one clip); a front end (`frontends`,
`presets`) = `waves` x `spectra` x `scales` x `layouts`. Owns what becomes of broken audio. Keeps no array
(cache) and cuts none (inference).
"""
