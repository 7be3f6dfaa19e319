"""The commands, a module for each or for each few that belong together."""
