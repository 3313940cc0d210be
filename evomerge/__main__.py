"""``python -m evomerge`` is the ``evomerge`` command."""

from evomerge.cli.main import main

main()
