"""`python -m tsflora`: the command, where its script is not on the path."""

from tsflora.cli import app

app()
