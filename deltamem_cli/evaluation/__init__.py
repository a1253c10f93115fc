"""Measures what a memory recalls, through the shipped engine and as a user would. Prints nothing.

Modules, from the bottom: `matching` (is the value in the answer), `statistics` (shares and their intervals), `cases`
(what is told and asked), `subject` (tells and asks, with a real database between), `runner` (which cases in which
modes), `report` (all of it as one document), `picture` (recall as curves), `perplexity` (what a memory does to plain text).
"""
