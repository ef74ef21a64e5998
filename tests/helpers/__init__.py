"""What tests share and what is no test: bundles, whole runs, strikes, the fault matrix, tools run by hand."""
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
REPOSITORY = TESTS.parent
