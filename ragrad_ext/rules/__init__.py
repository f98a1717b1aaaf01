"""Rules of correction: what happens to a pair of rows."""
