"""`dmem adapter`, a module for each of its parts; `app` is its table."""
