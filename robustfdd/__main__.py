"""``python -m robustfdd`` is the ``robustfdd`` command."""

from robustfdd.cli import main

main()
