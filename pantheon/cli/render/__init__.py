"""What commands print: listings, units, result files, and where words go."""
