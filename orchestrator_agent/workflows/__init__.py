"""Workflow definitions: expressions and templates, plans compiled from definitions, files, the library of names."""
