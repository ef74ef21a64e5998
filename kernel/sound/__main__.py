"""`python -m kernel.sound`: the front-end presets as a table."""
from .frontends import table

if __name__ == "__main__":
    print(table())
