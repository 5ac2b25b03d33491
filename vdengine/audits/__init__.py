"""Which stances a data set takes, before anything is trained on it."""
