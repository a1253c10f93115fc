"""Tools: what a model may call, in the form of its template."""
