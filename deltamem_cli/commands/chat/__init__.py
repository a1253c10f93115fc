"""`dmem chat`, a module for each of its parts; `app` is its table."""
