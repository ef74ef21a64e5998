"""Offline training: labelled clips and a recipe come in; weights, scores, an ensemble TOML and a card go out.

pipeline      all of train.py; recipe, lookup: what a recipe says and names; text_formats: TOML and tables
data, folds   labelled clips of known layouts, and their split; demo_clips: the clips of `make`
features, effects, augment, mixers, batching   from clips to batches
cross_validation, trainer, losses, optim, stackers   every net on every fold; checkpoints: of others
evaluation, external_clips, model_card, export, curves, epoch_progress   what it is worth, written down
choose, relabel, score   commands: members by score, noisy labels, many clips. Nothing here ships to Kaggle.
"""
