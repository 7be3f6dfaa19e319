"""What commands print: listings, units, the files of results, and the streams they go to."""
