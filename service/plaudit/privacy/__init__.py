"""The end of people's data: what retention and erasure delete, where, and how it is told (docs/privacy.md)."""
