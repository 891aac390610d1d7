"""What was measured, and how it is shown: the ledger, the tables made from it, the report of a run."""
