"""Hourglass: trained audio taggers to a scored Kaggle submission inside one kernel hour (what ships in the bundle)."""

__version__ = "0.1.0"
