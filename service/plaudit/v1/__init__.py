"""Generated from protos/plaudit/v1 by `make proto`; never edited."""
