"""Measures what a memory recalls, through the shipped engine and as a user would. Prints nothing.

`dmem eval recall`: `cases` (what is told and asked), `matching` (is the value in the answer), `runner` (which cases in which
modes), `report` (all of it as one document), `recall_picture`, `perplexity` (what a memory does to plain text). `dmem eval
talk`: `talk_cases`, `talk`. The public benchmarks: `benchmarks`. What all stand on: `respondent` (tells and asks, with a real
database between), `shares` (with their intervals), `kept_answers` (a file to go on from), `bars_picture`.
"""
