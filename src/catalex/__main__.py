"""``python -m catalex``."""

from catalex.cli import main

main()
