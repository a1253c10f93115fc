"""The public benchmarks of `dmem eval`: one file for each on one shape (`shape.py`), their data and how they are asked.

README.md says what each measures, how its protocols differ and what was found.
"""
