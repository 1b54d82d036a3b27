"""One module per change. A module that was released is never edited."""
